// Command latchkey runs a peer of a latchkey overlay and takes locks through it. It holds flags, output and exit codes; what it
// does lives in packages node, node/api, lockservice and testnet.
package main

import "os"

func main() {
	tuneGC()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}
