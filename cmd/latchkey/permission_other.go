//go:build !unix

package main

// permissionAdvice says what stands in the way of an operation that the system did not permit; here nothing is known of owners.
func permissionAdvice(error) string { return "" }
