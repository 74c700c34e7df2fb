package config_test

import (
	"fmt"
	"os"
	"path/filepath"

	"latchkey/node/config"
)

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "config.yaml")

	c, err := config.Default(config.Server)
	if err == nil {
		c, err = config.Set(c, "network.listen", "/ip4/192.0.2.1/tcp/4701")
	}
	if err == nil {
		err = config.Write(file, c)
	}
	if err != nil {
		fmt.Println(err)
		return
	}

	loaded, err := config.Load(file, []string{"LATCHKEY_NETWORK_MDNS=true"}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range []string{"network.mdns", "network.conns_high"} {
		value, _ := config.Get(loaded.Config, name)
		fmt.Println(name, value, "from", loaded.Source(name))
	}
	// Output:
	// network.mdns true from LATCHKEY_NETWORK_MDNS
	// network.conns_high 900 from profile server
}
