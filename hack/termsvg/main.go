// Command termsvg turns the text of a terminal session on standard input into an SVG picture on
// standard output; lines that begin with "$ " or "# " are what was typed. docs/up.svg was made with it:
//
//	go run ./hack/termsvg <session.txt >docs/up.svg
package main

import (
	"bufio"
	"fmt"
	"html"
	"os"
	"strings"
)

const (
	charWidth, lineHeight = 8.4, 19
	margin, bar           = 18, 34
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "termsvg:", err)
		os.Exit(1)
	}
}

func run() error {
	var lines []string
	widest := 0
	for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
		line := strings.TrimRight(sc.Text(), " ")
		lines = append(lines, line)
		widest = max(widest, len([]rune(line)))
	}
	w := bufio.NewWriter(os.Stdout)
	width, height := int(float64(widest)*charWidth)+2*margin, len(lines)*lineHeight+bar+margin
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="A terminal session with skep">`+"\n", width, height, width, height)
	fmt.Fprintf(w, `<rect width="%d" height="%d" rx="8" fill="#14161b"/>`+"\n", width, height)
	for i, colour := range []string{"#e0604c", "#e0b34c", "#63b35e"} {
		fmt.Fprintf(w, `<circle cx="%d" cy="17" r="5.5" fill="%s"/>`+"\n", 20+18*i, colour)
	}
	fmt.Fprintln(w, `<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="14" xml:space="preserve" fill="#c9ced6">`)
	for i, line := range lines {
		if line == "" {
			continue
		}
		fill := ""
		if strings.HasPrefix(line, "$ ") || strings.HasPrefix(line, "# ") {
			fill = ` fill="#f2c14e" font-weight="bold"`
		}
		fmt.Fprintf(w, `<text x="%d" y="%d"%s>%s</text>`+"\n", margin, bar+14+i*lineHeight, fill, html.EscapeString(line))
	}
	fmt.Fprintln(w, "</g>\n</svg>")
	return w.Flush()
}
