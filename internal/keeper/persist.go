package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-swarm/skep/internal/keeper/ports"
)

// The table on disk is a file a log and one for all ports. It lies where a
// reboot clears it (the containers are gone then), so nothing is synced.

func (t *logTable) entry(id string) string { return filepath.Join(t.dir, "table", id+".json") }

func (t *logTable) saveLog(cfg logConfig) error {
	if err := writeAtomic(t.entry(cfg.ID), cfg); err != nil {
		return fmt.Errorf("recording an open log: %w", err)
	}
	return nil
}

func (t *logTable) dropLog(id string) error {
	err := os.Remove(t.entry(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load opens the logs that an earlier keeper had open when it died.
func (t *logTable) load() error {
	entries, err := os.ReadDir(filepath.Join(t.dir, "table"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the table of logs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue // torn by a crash
		}
		var cfg logConfig
		err := readJSON(filepath.Join(t.dir, "table", e.Name()), &cfg)
		if err == nil {
			_, err = t.open(cfg)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("opening log %s again: %w", strings.TrimSuffix(e.Name(), ".json"), err))
		}
	}
	return errors.Join(errs...)
}

func portsFile(dir string) string { return filepath.Join(dir, "ports.json") }

func savePorts(dir string, held []ports.Port) error {
	if err := writeAtomic(portsFile(dir), held); err != nil {
		return fmt.Errorf("recording held ports: %w", err)
	}
	return nil
}

func loadPorts(dir string) ([]ports.Port, error) {
	var held []ports.Port
	err := readJSON(portsFile(dir), &held)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return held, err
}

func writeAtomic(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
