module spillway/test

go 1.26.0

require spillway v0.0.0

replace spillway => ../
