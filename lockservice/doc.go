// Package lockservice takes locks by name that hold across machines.
package lockservice
