package cassandra

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// Version is the Cassandra that is run.
const Version = "5.0.2"

const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>herald.test</groupId>
  <artifactId>cassandra</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.cassandra</groupId>
      <artifactId>cassandra-all</artifactId>
      <version>` + Version + `</version>
    </dependency>
  </dependencies>
</project>
`

// jars returns Cassandra and all that it needs, from the cache or from Maven.
func jars(ctx context.Context, log func(string, ...any)) ([]string, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, Version)
	lib := filepath.Join(dir, "lib")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	complete := filepath.Join(dir, "complete")
	if _, err := os.Stat(complete); err != nil {
		log("fetching Cassandra %s with Maven into %s", Version, lib)
		if err := fetch(ctx, dir, lib); err != nil {
			return nil, err
		}
		if err := os.WriteFile(complete, nil, 0o644); err != nil {
			return nil, err
		}
	}
	all, err := filepath.Glob(filepath.Join(lib, "*.jar"))
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("cassandra: no jars in %s: remove %s", lib, dir)
	}
	slices.Sort(all)
	return all, err
}

func fetch(ctx context.Context, dir, lib string) error {
	file := filepath.Join(dir, "pom.xml")
	if err := os.WriteFile(file, []byte(pom), 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mvn", "-B", "-q", "-f", file,
		"org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+lib)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cassandra: fetching the jars with Maven: %w\n%s", err, out)
	}
	return nil
}

// cacheDir is .cache/cassandra beside go.mod, else the user's cache.
func cacheDir() (string, error) {
	if dir := os.Getenv("HERALD_CASSANDRA_CACHE"); dir != "" {
		return dir, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".cache", "cassandra"), nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	user, err := os.UserCacheDir()
	return filepath.Join(user, "herald", "cassandra"), err
}
