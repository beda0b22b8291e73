"""The endpoint picker: Envoy's ext_proc protocol, so that Envoy carries the bytes and the core only decides."""
