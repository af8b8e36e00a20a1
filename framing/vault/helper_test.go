package vault

import (
	"bytes"
	"encoding/xml"
	"maps"
	"slices"
)

func sorted(object map[string]any) []string { return slices.Sorted(maps.Keys(object)) }

func escapeXML(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s))
	return b.String()
}

// depth is how many objects and arrays lie in one another.
func depth(v any) (most int) {
	switch v := v.(type) {
	case map[string]any:
		for _, w := range v {
			most = max(most, depth(w))
		}
	case []any:
		for _, w := range v {
			most = max(most, depth(w))
		}
	default:
		return 0
	}
	return most + 1
}
