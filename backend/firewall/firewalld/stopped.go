package firewalld

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// stopped reports that no firewalld runs, in whatever namespace: what is permanent
// is its files then, and nobody else has them in memory.
func (c *Client) stopped(ctx context.Context) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if here, err := c.here(); err != nil || here {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	fw, err := c.enter(ctx)
	if err != nil || fw == nil {
		return err == nil, err
	}
	return false, fw.close()
}

// files are those of our permanent objects. One without our description is not
// ours.
func (c *Client) files() ([]string, error) {
	var files []string
	for i, name := range c.owner.objects() {
		path := filepath.Join(c.config, [...]string{"policies", "policies", "ipsets", "ipsets"}[i], name+".xml")
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for firewalld's files of ours: %w", err)
		}
		if bytes.Contains(text, []byte("<description>"+description+"</description>")) {
			files = append(files, path)
		}
	}
	return files, nil
}

func removeAll(files []string) error {
	var errs []error
	for _, path := range files {
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("remove firewalld's file of ours: %w", err))
		}
	}
	return errors.Join(errs...)
}
