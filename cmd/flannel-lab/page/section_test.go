package page

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	s := Section{Name: "speed"}
	begin, end := s.begin(), s.end()
	for name, tc := range map[string]struct{ page, want string }{
		"empty":      {"a\n" + begin + end + "b\n", "a\n" + begin + "\nnew\n\n" + end + "b\n"},
		"an old one": {begin + "\nold\n\n" + end, begin + "\nnew\n\n" + end},
		"beside another": {
			Section{Name: "other"}.begin() + Section{Name: "other"}.end() + begin + end,
			Section{Name: "other"}.begin() + Section{Name: "other"}.end() + begin + "\nnew\n\n" + end,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.replace([]byte(tc.page), []byte("new\n"))
			if err != nil || string(got) != tc.want {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
	for name, page := range map[string]string{"nothing": "a\n", "no end": begin + "a\n", "reversed": end + begin} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.replace([]byte(page), nil); !errors.Is(err, ErrNoSection) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestWrite(t *testing.T) {
	for name, tc := range map[string]struct {
		section Section
		want    string
	}{
		"with a picture": {Section{Page: "a.md", Name: "speed", Picture: "a.svg", Caption: "how fast"}, "\nnew\n\n![how fast](a.svg)\n\n"},
		"without":        {Section{Page: "a.md", Name: "speed"}, "\nnew\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			folder, s := t.TempDir(), tc.section
			page, picture := filepath.Join(folder, "a.md"), filepath.Join(folder, "a.svg")
			write := func() error { return errors.Join(s.Check(folder), s.Write(folder, []byte("new\n"), []byte("drawn"))) }
			if err := write(); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("no page: %v", err)
			}
			if err := os.WriteFile(page, []byte("own words\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := write(); !errors.Is(err, ErrNoSection) {
				t.Errorf("no section: %v", err)
			}
			if _, err := os.Stat(picture); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a picture that no page speaks of: %v", err)
			}
			if err := os.WriteFile(page, []byte("own words\n"+s.begin()+s.end()+"more words\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			// The second time changes nothing.
			for range 2 {
				if err := write(); err != nil {
					t.Fatal(err)
				}
				want := "own words\n" + s.begin() + tc.want + s.end() + "more words\n"
				if got, err := os.ReadFile(page); err != nil || string(got) != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			}
			got, err := os.ReadFile(picture)
			if s.Picture == "" && !errors.Is(err, os.ErrNotExist) || s.Picture != "" && string(got) != "drawn" {
				t.Errorf("the picture: %q, %v", got, err)
			}
		})
	}
}

func TestPictureIsXML(t *testing.T) {
	p := NewPicture(10, 20)
	p.Title(1, 2, `<a & "b">`)
	p.Text(3, 4, Middle, "µ")
	p.Note(3, 4, End, "<")
	p.Range(1, 2, 3)
	p.Rect(5, 6, 7, 8, "#123456")
	p.Line([]Point{{1, 2}, {3, 4}}, "#abc")
	for d := xml.NewDecoder(bytes.NewReader(p.Bytes())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
