package containerd

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// withLog makes containerd's code, which logs by logrus, log to out. Its informational lines (one for every shim) are
// of use only to someone who debugs this package, so they go one level down.
func withLog(ctx context.Context, out *slog.Logger) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.InfoLevel)
	logger.AddHook(slogHook{out})
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}

// silenceDefaultLog quiets the logger that containerd's code uses where it has no context. It is one for the whole process
// and would write to its standard error; what matters of it comes back as an error as well.
func silenceDefaultLog() { log.L.Logger.SetOutput(io.Discard) }

type slogHook struct{ out *slog.Logger }

// Levels asks for every entry; slog decides.
func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire passes one entry on.
func (h slogHook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelWarn
	case logrus.WarnLevel:
		level = slog.LevelInfo
	}
	if !h.out.Enabled(context.Background(), level) {
		return nil
	}
	attrs := make([]slog.Attr, 0, len(e.Data)+1)
	attrs = append(attrs, slog.String("component", "containerd"))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.out.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}
