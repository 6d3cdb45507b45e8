package containerd

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A signal waits until runc has become the program, and no longer than that, its client or its limit lasts.
func TestAwaitProgram(t *testing.T) {
	comm := filepath.Join(t.TempDir(), "comm")
	write := func(name string) {
		if err := os.WriteFile(comm+".new", []byte(name), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(comm+".new", comm); err != nil {
			t.Error(err)
		}
	}
	write(runcInit)
	waited := make(chan struct{})
	go func() { defer close(waited); awaitProgram(t.Context(), comm) }()
	select {
	case <-waited:
		t.Error("it did not wait for the program")
	case <-time.After(20 * programCheck):
	}
	write("nginx\n")
	<-waited
	begun := time.Now()
	awaitProgram(t.Context(), comm)
	awaitProgram(t.Context(), comm+".none")
	write(runcInit)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	awaitProgram(gone, comm)
	if took := time.Since(begun); took >= programWait {
		t.Errorf("a program that runs, one that has ended and a client that is gone took %v", took)
	}
	begun = time.Now()
	if awaitProgram(t.Context(), comm); time.Since(begun) < programWait {
		t.Errorf("a process that stays runc's was given %v", time.Since(begun))
	}
}
