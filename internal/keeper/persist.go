package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-swarm/skep/internal/durable"
	"github.com/skep-swarm/skep/internal/keeper/ports"
)

// The table on disk is a file a log and one for all ports. It lies where a
// reboot clears it (the containers are gone then), so nothing is synced.

func (t *logTable) entry(id string) string { return filepath.Join(t.dir, "table", id+".json") }

func (t *logTable) saveLog(cfg logConfig) error {
	if err := writeJSON(t.entry(cfg.ID), cfg); err != nil {
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
	if err := writeJSON(portsFile(dir), held); err != nil {
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

func writeJSON(path string, v any) error {
	return durable.Replace(path, 0o600, func(w io.Writer) error { return json.NewEncoder(w).Encode(v) })
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
