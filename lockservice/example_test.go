package lockservice_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"latchkey/lockservice"
)

// A resource that checks tokens: the delayed write of a former holder is refused, whatever that holder believes.
func ExampleGuard() {
	var guard lockservice.Guard // belongs to the resource
	value := ""
	write := func(token lockservice.Token, v string) error {
		return guard.Do(token, func() error { value = v; return nil })
	}

	fmt.Println(write(33, "first holder"))
	fmt.Println(write(34, "second holder"))
	err := write(33, "first holder, after a long pause")
	fmt.Println(errors.Is(err, lockservice.ErrStaleToken), value)
	// Output:
	// <nil>
	// <nil>
	// true second holder
}

// The same for a file that several processes write: token and data are replaced in one step.
func ExampleFileGuard() {
	dir, err := os.MkdirTemp("", "guard")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	file := lockservice.NewFileGuard(filepath.Join(dir, "state"))
	fmt.Println(file.Write(34, []byte("newer")))
	fmt.Println(errors.Is(file.Write(33, []byte("late")), lockservice.ErrStaleToken))
	token, data, err := file.Read()
	fmt.Println(token, string(data), err)
	// Output:
	// <nil>
	// true
	// 34 newer <nil>
}
