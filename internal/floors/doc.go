// Package floors holds one test: that imports in this module point downwards only, and that automata see no clock, network,
// lock, goroutine or global randomness (house style, section 3). It reads the source itself, every file for every system,
// and knows each package by name: a new one must be given its place in the table of floors_test.go.
//
// What test files import is not its business, except that it keeps the packages made for tests out of the product.
package floors
