package model

// Credentials are what a node shows to a registry: a JSON object of Docker's type AuthConfig. They go from a client through the
// log, which is encrypted, to the nodes that need them, and nowhere else.
type Credentials = Value

// MaxCredentials bounds credentials, in bytes; tokens of cloud registries have a few thousand.
const MaxCredentials = 24 << 10
