package netapply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-swarm/skep/internal/netplan"
)

// openGateway opens, or makes, the sandbox.
func (n *Network) openGateway() (int, error) {
	if n.host == nil {
		fd, err := dupNS(n.hostFD)
		if err != nil {
			return 0, err
		}
		if n.host, err = openSpace(netplan.HostName, fd); err != nil {
			return 0, err
		}
	}
	var err error
	if n.hostFW == nil {
		if n.hostFW, err = openFilter(n.host.fd); err != nil {
			return 0, err
		}
	}
	path := n.gatewayPath()
	if n.gw != nil && isNS(path) && sameNS(path, fmt.Sprintf("/proc/self/fd/%d", n.gw.fd)) {
		return 0, nil
	}
	changes := 0
	if n.gw != nil && !isNS(path) {
		// Only the file has gone: our own handle still holds the namespace.
		if err := adoptFD(path, n.gw.fd); err != nil {
			return 0, err
		}
		return 1, nil
	}
	if !isNS(path) {
		if err := dropNS(path); err != nil {
			return 0, err
		}
		base := netplan.GatewaySpace(n.node, nil)
		if err := newNS(path, func() error { _, err := writeSysctls(base.Sysctls); return err }); err != nil {
			return 0, fmt.Errorf("make gateway sandbox: %w", err)
		}
		changes++
	}
	n.closeGateway()
	fd, err := openNS(path)
	if err != nil {
		return changes, err
	}
	if n.gw, err = openSpace(netplan.GatewayName, fd); err != nil {
		return changes, err
	}
	if n.gwFW, err = openFilter(n.gw.fd); err != nil {
		return changes, err
	}
	n.reopen()
	return changes, nil
}

// reopen tells Run to listen in the namespaces as they are now.
func (n *Network) reopen() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *Network) closeGateway() {
	n.gw.close()
	n.gwFW.close()
	n.gw, n.gwFW = nil, nil
}

// prune removes the namespaces of tasks and networks that nobody asked for.
func (n *Network) prune(tasks []netplan.Task) error {
	files, err := os.ReadDir(n.cfg.Dir)
	if err != nil {
		return fmt.Errorf("read namespace folder: %w", err)
	}
	keep := map[string]bool{netplan.GatewayName: true}
	for _, t := range tasks {
		keep[t.Name()] = true
	}
	n.mu.Lock()
	for num := range n.overlays {
		keep[netplan.OverlayName(num)] = true
	}
	n.mu.Unlock()
	var errs []error
	for _, f := range files {
		if path := filepath.Join(n.cfg.Dir, f.Name()); !keep[f.Name()] {
			n.nf.drop(path)
			errs = append(errs, dropNS(path))
		}
	}
	return errors.Join(errs...)
}

// Destroy removes everything of the instance: namespaces, links, routes, rules
// and mounts. The host's forwarding sysctls stay on, because others may have
// come to need them. It works without a Sync before it, given the instance.
func (n *Network) Destroy(_ context.Context, instance string) error {
	n.state.Lock()
	defer n.state.Unlock()
	n.ready = false
	n.mu.Lock()
	n.tasks, n.ports = map[string]*taskState{}, map[netplan.PortKey]netplan.Port{}
	n.mu.Unlock()
	n.closeOverlays()
	n.nf.closeAll()
	node := netplan.Node{Instance: instance}
	fd, err := dupNS(n.hostFD)
	if err != nil {
		return err
	}
	host, err := openSpace(netplan.HostName, fd)
	if err != nil {
		return err
	}
	defer host.close()
	fw, err := openFilter(host.fd)
	if err != nil {
		return err
	}
	defer fw.close()
	errs := []error{fw.remove(node.HostLink()), fw.retractForwarding(node.HostLink()), host.reset(node.HostLink())}
	n.closeGateway()
	n.reopen() // Run's sockets would keep the sandbox alive
	files, err := os.ReadDir(n.cfg.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("read namespace folder: %w", err))
	}
	for _, f := range files {
		errs = append(errs, dropNS(filepath.Join(n.cfg.Dir, f.Name())))
	}
	if err := os.Remove(n.cfg.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove namespace folder: %w", err))
	}
	return errors.Join(errs...)
}

// Close releases the handles and changes nothing in the kernel. No method may
// be called afterwards, and Run must have returned.
func (n *Network) Close() error {
	n.state.Lock()
	defer n.state.Unlock()
	n.ready = false
	n.closeOverlays()
	n.nf.closeAll()
	n.closeGateway()
	n.hostFW.close()
	n.host.close()
	n.host, n.hostFW = nil, nil
	return closeFD(&n.hostFD)
}
