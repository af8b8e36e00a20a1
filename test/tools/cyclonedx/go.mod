module spillway/test/tools/cyclonedx

go 1.26.0

require github.com/CycloneDX/cyclonedx-gomod v1.7.0
