// Package config is the configuration of one peer: what it holds, its profiles, and where each value comes from.
//
// [Load] merges four layers, each over the one before: the defaults of the profile, the file, the environment
// (LATCHKEY_<SECTION>_<FIELD>) and the command line, and [Loaded.Source] tells which of them a value is from. A field that does
// not exist, or a value out of its range, is an error that names the field, the value and the place.
package config
