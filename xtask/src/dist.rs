//! Debian packages, put together with `dpkg-deb`.
//!
//! | package | what |
//! |---|---|
//! | `rackhand-controller` | the controller, its unit |
//! | `rackhand-agent` | the rack node: agent, boot, the technician's tool, their units and configuration |
//! | `rackhand-cli` | the operator's tool |
//! | `rackhand-installer-image` | kernel and initial RAM disk that machines are installed with |
//! | `rackhand-toolbox` | programs that machines are tested and rescued with |
//!
//! Invariants:
//! - The same binaries and times make the same bytes: all times are `SOURCE_DATE_EPOCH`, the
//!   last commit's when that is not set; owners are root; contents are sorted by `dpkg-deb`.
//! - No service is started or enabled by its package, and what an operator enabled stays so.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    shell::{Shell, root, run},
    toolbox,
};

/// Packages go to `out`, those that were there of other versions stay.
pub(crate) fn packages(binaries: &Path, installer: &Path, out: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let source = Source { binaries: binaries.to_owned(), installer: installer.to_owned(), time: source_time()? };
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    // One that is only tried may go without a toolbox.
    let is_there = |package: &&Package| package.name != TOOLBOX || source.installer.join(toolbox::FILE).exists();
    PACKAGES.iter().filter(is_there).map(|package| package.build(&source, out, version)).collect()
}

/// Refuses programs that a test can make fail: those built without `--release`.
pub(crate) fn released(binaries: &Path) -> Result<()> {
    for program in PACKAGES.iter().flat_map(|package| package.programs) {
        let file = binaries.join(program);
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        without_fail_points(&file, &bytes)?;
    }
    Ok(())
}

/// The same of one program, in `bytes`.
pub(crate) fn without_fail_points(file: &Path, bytes: &[u8]) -> Result<()> {
    let name = rackhand_fail_points::DIRECTORY.as_bytes();
    ensure!(
        !bytes.windows(name.len()).any(|window| window == name),
        "{} has fail points in it, by which whoever sets its environment makes it crash: build it in a profile without \
         debug-assertions (look at [profile.release] and [profile.installer] in Cargo.toml, and for \
         CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS), and see that common/fail-points still empties itself there",
        file.display()
    );
    Ok(())
}

/// What packages are made from.
struct Source {
    binaries: PathBuf,
    installer: PathBuf,
    /// Seconds since 1970 that every file is given.
    time: u64,
}

/// A package as it is to be.
struct Package {
    name: &'static str,
    description: &'static str,
    long: &'static str,
    /// Beside what the binaries' libraries need.
    depends: &'static str,
    recommends: &'static str,
    programs: &'static [&'static str],
    /// From the repository to the file system, with their modes' lowest digits.
    files: &'static [(&'static str, &'static str)],
    /// Files an operator changes; a new version asks before it replaces them.
    conffiles: &'static [(&'static str, &'static str)],
    units: &'static [&'static str],
    /// What a purge removes.
    state: &'static str,
    configuration: &'static str,
    /// What it carries of what machines run, instead of programs of a node.
    images: &'static [&'static str],
}

const NOTHING: Package = Package {
    name: "",
    description: "",
    long: "",
    depends: "",
    recommends: "",
    programs: &[],
    files: &[],
    conffiles: &[],
    units: &[],
    state: "",
    configuration: "",
    images: &[],
};

const PACKAGES: &[Package] = &[
    Package {
        name: "rackhand-controller",
        description: "Rackhand bare-metal provisioning: the controller",
        long: "Holds inventory, images, runs and history of racks of servers, and commands the\n\
               nodes that boot and install them.",
        depends: "procps, systemd (>= 247)",
        // qemu-img converts qcow2 images.
        recommends: "rackhand-cli, qemu-utils",
        programs: &["rackhand-controller"],
        files: &[
            ("controller/systemd/rackhand-controller.service", "lib/systemd/system/rackhand-controller.service"),
            ("controller/systemd/rackhand-controller.sysusers", "usr/lib/sysusers.d/rackhand-controller.conf"),
            ("controller/systemd/rackhand-controller.tmpfiles", "usr/lib/tmpfiles.d/rackhand-controller.conf"),
            ("controller/systemd/controller.toml", "usr/share/doc/rackhand-controller/examples/controller.toml"),
        ],
        units: &["rackhand-controller.service"],
        state: "/var/lib/rackhand/controller",
        configuration: "/etc/rackhand/controller.toml",
        ..NOTHING
    },
    Package {
        name: "rackhand-agent",
        description: "Rackhand bare-metal provisioning: the node of a rack",
        long: "Answers the machines' boot requests, installs operating systems, drives power and\n\
               tells the controller what happens.",
        depends: "procps, systemd (>= 247)",
        recommends: "ipxe, rackhand-installer-image",
        programs: &["rackhand-agent", "rackhand-diag"],
        files: &[
            ("agent/systemd/rackhand-agent.service", "lib/systemd/system/rackhand-agent.service"),
            ("agent/systemd/rackhand-boot.service", "lib/systemd/system/rackhand-boot.service"),
            ("agent/systemd/rackhand-agent.sysusers", "usr/lib/sysusers.d/rackhand-agent.conf"),
            ("agent/systemd/rackhand-agent.tmpfiles", "usr/lib/tmpfiles.d/rackhand-agent.conf"),
        ],
        conffiles: &[
            ("agent/systemd/agent.toml", "etc/rackhand/agent.toml"),
            ("agent/systemd/boot.toml", "etc/rackhand/boot.toml"),
        ],
        units: &["rackhand-agent.service", "rackhand-boot.service"],
        state: "/var/lib/rackhand/agent /var/lib/rackhand/boot",
        ..NOTHING
    },
    Package {
        name: "rackhand-cli",
        description: "Rackhand bare-metal provisioning: the operator's tool",
        long: "Talks to a controller: racks, machines, images, runs.",
        programs: &["rackhand"],
        ..NOTHING
    },
    Package {
        name: "rackhand-installer-image",
        description: "Rackhand bare-metal provisioning: the installer machines boot",
        long: "A kernel and an initial RAM disk with one static program in it.",
        images: &["kernel", "initramfs", "manifest.json"],
        ..NOTHING
    },
    Package {
        name: TOOLBOX,
        description: "Rackhand bare-metal provisioning: programs that machines are tested and rescued with",
        long: "A Debian userland in one file, which the installer fetches into memory.",
        images: &[toolbox::FILE, toolbox::MANIFEST],
        ..NOTHING
    },
];

const TOOLBOX: &str = "rackhand-toolbox";

impl Package {
    fn build(&self, source: &Source, out: &Path, version: &str) -> Result<PathBuf> {
        let architecture = if self.images.is_empty() { "amd64" } else { "all" };
        let tree = out.join(format!(".{}", self.name));
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        let document = tree.join("usr/share/doc").join(self.name);
        put(&document.join("copyright"), &self.copyright(source)?, 0o644)?;
        for (from, to) in self.files.iter().chain(self.conffiles) {
            put(&tree.join(to), &fs::read(root().join(from)).with_context(|| (*from).to_owned())?, 0o644)?;
        }
        for program in self.programs {
            let to = tree.join("usr/bin").join(program);
            put(&to, &fs::read(source.binaries.join(program)).with_context(|| (*program).to_owned())?, 0o755)?;
            run(Command::new("strip").arg("--strip-unneeded").arg(&to))?;
            self.documentation(source, program, &tree)?;
        }
        for file in self.images {
            let bytes = fs::read(source.installer.join(file)).with_context(|| (*file).to_owned())?;
            put(&tree.join("usr/lib/rackhand/installer").join(file), &bytes, 0o644)?;
        }

        let control = tree.join("DEBIAN");
        put(&control.join("control"), self.control(&tree, version, architecture)?.as_bytes(), 0o644)?;
        if !self.conffiles.is_empty() {
            let list: String = self.conffiles.iter().map(|(_, to)| format!("/{to}\n")).collect();
            put(&control.join("conffiles"), list.as_bytes(), 0o644)?;
        }
        put(&control.join("md5sums"), &md5sums(&tree)?, 0o644)?;
        if !self.units.is_empty() {
            for script in ["postinst", "prerm", "postrm"] {
                put(&control.join(script), self.script(script)?.as_bytes(), 0o755)?;
            }
        }
        directories(&tree)?;
        let deb = out.join(format!("{}_{version}_{architecture}.deb", self.name));
        run(Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "-z1", "--build"])
            .arg(&tree)
            .arg(&deb)
            .env("SOURCE_DATE_EPOCH", source.time.to_string())
            .stdout(Stdio::null()))?;
        fs::remove_dir_all(&tree)?;
        Ok(deb)
    }

    /// Man pages, compressed, and completions, as the program itself writes them.
    fn documentation(&self, source: &Source, program: &str, tree: &Path) -> Result<()> {
        let written = tree.join("documentation");
        fs::create_dir_all(&written)?;
        run(Command::new(source.binaries.join(program)).arg("documentation").arg(&written))?;
        for (file, to) in [
            (format!("{program}.bash"), format!("usr/share/bash-completion/completions/{program}")),
            (format!("{program}.fish"), format!("usr/share/fish/vendor_completions.d/{program}.fish")),
            (format!("_{program}"), format!("usr/share/zsh/vendor-completions/_{program}")),
        ] {
            put(&tree.join(to), &fs::read(written.join(&file)).with_context(|| file.clone())?, 0o644)?;
            fs::remove_file(written.join(file))?;
        }
        for page in fs::read_dir(&written)? {
            let page = page?.path();
            // `rackhand agent enrol` and `rackhand-agent enrol` would have pages of one name.
            let others = PACKAGES.iter().flat_map(|package| package.programs).filter(|other| **other != program);
            let name = page.file_name().context("a page has a name")?.to_string_lossy().into_owned();
            if others.filter(|other| other.len() > program.len()).any(|other| name.starts_with(other)) {
                continue;
            }
            let text = fs::read_to_string(&page)?;
            fs::write(&page, with_lines_kept(&text))?;
            // Named after neither time nor file: `gzip -n`.
            run(Command::new("gzip").args(["-9", "-n"]).arg(&page))?;
            let name = format!("{name}.gz");
            put(&tree.join("usr/share/man/man1").join(&name), &fs::read(written.join(&name))?, 0o644)?;
        }
        Ok(fs::remove_dir_all(&written)?)
    }

    fn control(&self, tree: &Path, version: &str, architecture: &str) -> Result<String> {
        let libraries = self.libraries(tree)?;
        let depends: Vec<&str> = [libraries.as_str(), self.depends].into_iter().filter(|one| !one.is_empty()).collect();
        let size = Shell::new(&["du", "--apparent-size", "-sk", "--exclude=DEBIAN"]).arg(tree).read()?;
        let size = size.split_whitespace().next().context("du said nothing")?;
        let mut text = format!(
            "Package: {}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: The Rackhand authors <rackhand@localhost>\n\
             Section: admin\nPriority: optional\nInstalled-Size: {size}\n",
            self.name
        );
        if !depends.is_empty() {
            text += &format!("Depends: {}\n", depends.join(", "));
        }
        if !self.recommends.is_empty() {
            text += &format!("Recommends: {}\n", self.recommends);
        }
        text += &format!("Description: {}\n {}\n", self.description, self.long.replace('\n', "\n "));
        Ok(text)
    }

    /// What the programs' libraries need, as Debian's own tool finds it.
    fn libraries(&self, tree: &Path) -> Result<String> {
        if self.programs.is_empty() {
            return Ok(String::new());
        }
        let work = tree.join("shlibdeps");
        put(&work.join("debian/control"), b"Source: rackhand\n\nPackage: rackhand\nArchitecture: any\n", 0o644)?;
        let mut command = Command::new("dpkg-shlibdeps");
        command
            .arg("-O")
            .args(self.programs.iter().map(|program| format!("-e{}", tree.join("usr/bin").join(program).display())));
        let output = command.current_dir(&work).output().context("dpkg-shlibdeps: is dpkg-dev installed?")?;
        ensure!(output.status.success(), "dpkg-shlibdeps failed: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_dir_all(&work)?;
        let text = String::from_utf8(output.stdout)?;
        // Sorted: in whatever order it looked at them, the package is the same.
        let depends = text.trim().strip_prefix("shlibs:Depends=").context("dpkg-shlibdeps said nothing")?;
        Ok(depends.split(", ").collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", "))
    }

    fn script(&self, name: &str) -> Result<String> {
        let text = fs::read_to_string(root().join("xtask/packages").join(name))?;
        Ok([
            ("@package@", self.name),
            ("@units@", &self.units.join(" ")),
            ("@state@", self.state),
            ("@configuration@", self.configuration),
        ]
        .iter()
        .fold(text, |text, (place, value)| text.replace(place, value)))
    }

    fn copyright(&self, source: &Source) -> Result<Vec<u8>> {
        let mut text = fs::read_to_string(root().join("xtask/packages/copyright"))?;
        if self.name == TOOLBOX {
            text += "\nFiles: usr/lib/rackhand/installer/toolbox.squashfs\n\
                     Copyright: the authors of the Debian packages that toolbox.json beside it lists\n\
                     License: as each of them says\n \
                     Each package's licence is in the file system, as /usr/share/doc/PACKAGE/copyright;\n \
                     Debian keeps the source of each.\n";
        } else if !self.images.is_empty() {
            let manifest = fs::read(source.installer.join("manifest.json")).context("there is no installer image")?;
            let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
            let package = manifest["package"].as_str().context("the installer's manifest names no kernel package")?;
            text += &format!(
                "\nFiles: usr/lib/rackhand/installer/kernel usr/lib/rackhand/installer/initramfs\n\
                 Copyright: Linus Torvalds and many others\n\
                 License: GPL-2\n \
                 Kernel and modules are those of Debian's package {package}, whose source Debian keeps.\n \
                 On Debian systems the text is in /usr/share/common-licenses/GPL-2.\n"
            );
        }
        Ok(text.into_bytes())
    }
}

/// A man page whose indented lines, which are commands and files, are not filled up to the right.
fn with_lines_kept(page: &str) -> String {
    let (mut text, mut is_kept) = (String::new(), false);
    for line in page.lines() {
        let keep = line.starts_with("  ");
        if keep != is_kept {
            text += if keep { ".nf\n" } else { ".fi\n" };
            is_kept = keep;
        }
        text += line;
        text.push('\n');
    }
    text + if is_kept { ".fi\n" } else { "" }
}

/// `SOURCE_DATE_EPOCH`, or the time of the last commit.
fn source_time() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => Shell::new(&["git", "log", "-1", "--format=%ct"])
            .read()
            .context("not in a git repository: set SOURCE_DATE_EPOCH")?,
    };
    text.trim().parse().context("SOURCE_DATE_EPOCH is not a number of seconds")
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    fs::create_dir_all(path.parent().expect("a file lies in a directory"))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Whatever the umask here is, directories in packages are 0755.
fn directories(tree: &Path) -> Result<()> {
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(tree)? {
        let path = entry?.path();
        if path.is_dir() {
            directories(&path)?;
        }
    }
    Ok(())
}

fn md5sums(tree: &Path) -> Result<Vec<u8>> {
    let script = "find . -type f ! -path './DEBIAN/*' -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 md5sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(tree).output()?;
    ensure!(output.status.success(), "md5sum failed");
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs that write the documentation asked of them, and an installer, all made up.
    fn source(dir: &Path) -> Source {
        let (binaries, installer) = (dir.join("binaries"), dir.join("installer"));
        fs::create_dir_all(&binaries).unwrap();
        for program in PACKAGES.iter().flat_map(|package| package.programs) {
            // A real ELF program, so that `strip` and `dpkg-shlibdeps` have work; what it
            // cannot write is written by a wrapper in a test of the real binaries.
            let code = format!(
                "#include <stdio.h>\nint main(int c, char **v) {{ char p[4096];\n\
                 const char *n[] = {{\"{program}.bash\", \"{program}.fish\", \"_{program}\", \"{program}.1\", \"{program}-agent.1\"}};\n\
                 for (int i = 0; i < 5; i++) {{ snprintf(p, sizeof p, \"%s/%s\", v[2], n[i]);\n\
                 FILE *f = fopen(p, \"w\"); if (!f) return 1; fputs(n[i], f); fclose(f); }} return 0; }}\n"
            );
            let file = dir.join("program.c");
            fs::write(&file, code).unwrap();
            run(Command::new("gcc").arg("-o").arg(binaries.join(program)).arg(&file)).unwrap();
        }
        fs::create_dir_all(&installer).unwrap();
        fs::write(installer.join("kernel"), b"kernel").unwrap();
        fs::write(installer.join("initramfs"), b"initramfs").unwrap();
        fs::write(installer.join("manifest.json"), br#"{"package":"linux-image_6.1"}"#).unwrap();
        for file in [toolbox::FILE, toolbox::MANIFEST] {
            fs::write(installer.join(file), file).unwrap();
        }
        Source { binaries, installer, time: 1_700_000_000 }
    }

    fn said(program: &str, arguments: &[&str], deb: &Path) -> String {
        Shell::new(&[&[program], arguments].concat()).arg(deb).read().unwrap()
    }

    #[test]
    fn packages_hold_what_they_should_and_are_the_same_bytes_each_time() {
        let dir = std::env::temp_dir().join(format!("rackhand-dist-{}", std::process::id()));
        let source = source(&dir);
        let mut owners = std::collections::HashMap::new();
        for package in PACKAGES {
            let (one, two) = (dir.join("one"), dir.join("two"));
            fs::create_dir_all(&one).unwrap();
            fs::create_dir_all(&two).unwrap();
            let deb = package.build(&source, &one, "1.2.3").unwrap();
            let again = package.build(&source, &two, "1.2.3").unwrap();
            assert!(fs::read(&deb).unwrap() == fs::read(&again).unwrap(), "{} differs", package.name);

            let contents = said("dpkg-deb", &["--contents"], &deb);
            for line in contents.lines() {
                assert!(line.contains(" root/root ") && line.contains(" 2023-11-14 "), "{line}");
            }
            let mut wanted: Vec<String> =
                package.files.iter().chain(package.conffiles).map(|(_, to)| format!("./{to}")).collect();
            for program in package.programs {
                wanted.push(format!("./usr/bin/{program}"));
                wanted.push(format!("./usr/share/man/man1/{program}.1.gz"));
                wanted.push(format!("./usr/share/bash-completion/completions/{program}"));
            }
            for path in wanted {
                assert!(contents.lines().any(|line| line.ends_with(&path)), "{path} is not in\n{contents}");
            }
            for file in
                contents.lines().filter_map(|line| line.split_whitespace().last()).filter(|file| !file.ends_with('/'))
            {
                let other = owners.insert(file.to_owned(), package.name);
                assert_eq!(other, None, "{file} is in two packages");
            }
            let info = said("dpkg-deb", &["--info"], &deb);
            assert_eq!(info.contains("libc6"), !package.programs.is_empty(), "{info}");
            assert_eq!(info.contains("conffiles"), !package.conffiles.is_empty(), "{info}");
            for unit in package.units {
                assert!(contents.contains(&format!("./lib/systemd/system/{unit}")), "{contents}");
            }
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn examples_in_man_pages_stay_as_they_were_written_and_prose_is_filled() {
        let page = ".TH x 1\n.SH EXAMPLE\nSome\nprose:\n.PP\n  key = \"/a/file\"  # which is read again at each reload, whenever\n  \
                    second\n.PP\nMore\nprose\n  last\n";
        let groff = ["groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=40n"];
        let set = |page: &str| {
            let file = std::env::temp_dir().join(format!("rackhand-page-{}", std::process::id()));
            fs::write(&file, page).unwrap();
            let text = Shell::new(&groff).arg(&file).read().unwrap();
            fs::remove_file(&file).unwrap();
            text
        };
        let (whole, prose) = ("  key = \"/a/file\"  # which is read again at each reload, whenever\n", "More prose\n");
        assert!(!set(page).contains(whole));
        let kept = set(&with_lines_kept(page));
        assert!(kept.contains(whole) && kept.contains("  second\n") && kept.contains(prose), "{kept}");
        assert!(kept.contains("Some prose:\n") && kept.contains("  last\n"), "{kept}");
        assert_eq!(with_lines_kept("plain\n"), "plain\n");
    }

    #[test]
    fn a_program_with_fail_points_is_refused_by_name_and_one_without_is_not() {
        let dir = std::env::temp_dir().join(format!("rackhand-released-{}", std::process::id()));
        let source = source(&dir);
        released(&source.binaries).unwrap();
        // This test is built as the product's other tests are, with the points in it.
        let ours = fs::read(std::env::current_exe().unwrap()).unwrap();
        fs::write(source.binaries.join("rackhand-agent"), ours).unwrap();
        let error = released(&source.binaries).unwrap_err().to_string();
        assert!(error.contains("binaries/rackhand-agent has fail points in it"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn scripts_are_shell_with_every_place_filled_in() {
        for package in PACKAGES.iter().filter(|package| !package.units.is_empty()) {
            for name in ["postinst", "prerm", "postrm"] {
                let script = package.script(name).unwrap();
                assert!(!script.contains('@'), "{script}");
                run(Command::new("sh").args(["-n", "-c", &script])).unwrap();
            }
        }
    }
}
