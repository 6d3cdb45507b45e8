package wire

import (
	"fmt"
	"net/netip"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// Limits of what one report may say of a task; longer texts are cut.
const (
	MaxReportTasks = 100
	MaxStatusText  = 4 << 10
	maxHostPorts   = 256
)

// Ref and TaskID turn a task's key into its message and back; a missing message is the zero key.
func Ref(id model.TaskID) *pb.TaskRef { return &pb.TaskRef{Service: uint64(id.Service), Num: id.Num} }
func TaskID(r *pb.TaskRef) model.TaskID {
	return model.TaskID{Service: model.ServiceID(r.GetService()), Num: r.GetNum()}
}

// AddrBytes is an address as 4 or 16 bytes, none for the zero Addr.
func AddrBytes(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	return a.Unmap().AsSlice()
}

// Addr reads AddrBytes; no bytes are the zero Addr.
func Addr(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("an address of %d bytes", len(b))
	}
	return a, nil
}

// Prefixes and PrefixTexts turn prefixes into text and back; Prefix reads one, "" being the zero Prefix.
func PrefixTexts(ps []netip.Prefix) []string {
	out := make([]string, 0, len(ps))
	for _, p := range ps {
		if p.IsValid() {
			out = append(out, p.String())
		}
	}
	return out
}

func Prefixes(texts []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(texts))
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func Prefix(text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	return netip.ParsePrefix(text)
}

// PrefixText is the text of a prefix, "" for the zero Prefix.
func PrefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// PortConfigs and Ports turn Docker's port configurations into messages and back.
func PortConfigs(ports []swarm.PortConfig) []*pb.PortConfig {
	out := make([]*pb.PortConfig, 0, len(ports))
	for _, p := range ports {
		out = append(out, &pb.PortConfig{Name: p.Name, Protocol: string(p.Protocol), TargetPort: p.TargetPort,
			PublishedPort: p.PublishedPort, PublishMode: string(p.PublishMode)})
	}
	return out
}

func Ports(msgs []*pb.PortConfig) []swarm.PortConfig {
	out := make([]swarm.PortConfig, 0, len(msgs))
	for _, m := range msgs {
		out = append(out, swarm.PortConfig{Name: m.Name, Protocol: PortProtocol(m.Protocol), TargetPort: m.TargetPort,
			PublishedPort: m.PublishedPort, PublishMode: swarm.PortConfigPublishMode(m.PublishMode)})
	}
	return out
}

// PortProtocol is Docker's value for a protocol, tcp when empty.
func PortProtocol(s string) network.IPProtocol {
	if s == "" {
		return network.TCP
	}
	return network.IPProtocol(s)
}

// Report turns a task's report into its message, with texts cut to MaxStatusText.
func Report(r model.TaskReport) *pb.TaskStatus {
	return &pb.TaskStatus{Task: Ref(r.Task), State: uint32(r.State), Message: cut(r.Message), Err: cut(r.Err), Pid: r.PID,
		ExitCode: r.ExitCode, HostPorts: PortConfigs(r.HostPorts), Health: uint32(r.Health)}
}

// TaskReport reads a task's report and refuses what no agent may say.
func TaskReport(m *pb.TaskStatus) (model.TaskReport, error) {
	state := model.TaskState(m.GetState())
	if m.GetState() > uint32(model.StateRejected) || state.String() == "" || state < model.StateAccepted {
		return model.TaskReport{}, model.Invalidf("a node cannot report the state %d", m.GetState())
	}
	if len(m.HostPorts) > maxHostPorts {
		return model.TaskReport{}, model.Invalidf("a task with %d host ports", len(m.HostPorts))
	}
	if m.Health > uint32(model.HealthUnhealthy) {
		return model.TaskReport{}, model.Invalidf("a node cannot report the health %d", m.Health)
	}
	r := model.TaskReport{Task: TaskID(m.GetTask()), State: state, Message: cut(m.Message), Err: cut(m.Err), PID: m.Pid, ExitCode: m.ExitCode, Health: model.Health(m.Health)}
	if len(m.HostPorts) > 0 {
		r.HostPorts = Ports(m.HostPorts)
	}
	return r, nil
}

// Clashes and PortClashes turn port clashes into messages and back; a port that is none is left out.
func Clashes(cs []model.PortClash) []*pb.PortClash {
	out := make([]*pb.PortClash, 0, len(cs))
	for _, c := range cs {
		out = append(out, &pb.PortClash{Protocol: c.Protocol, Port: uint32(c.Port), Message: cut(c.Message)})
	}
	return out
}

func PortClashes(ms []*pb.PortClash) []model.PortClash {
	var out []model.PortClash
	for _, m := range ms {
		if m.Port > 0 && m.Port <= 65535 {
			out = append(out, model.PortClash{Protocol: m.Protocol, Port: uint16(m.Port), Message: cut(m.Message)})
		}
	}
	return out
}

// cut shortens a text to MaxStatusText bytes without splitting a character.
func cut(s string) string {
	if len(s) <= MaxStatusText {
		return s
	}
	end := MaxStatusText - len("…")
	for end > 0 && s[end]&0xC0 == 0x80 {
		end--
	}
	return s[:end] + "…"
}
