//! The installer's image: a kernel of Debian's, and an initramfs with nothing in it but
//! `rackhand-installer` as `/init`, the kernel modules that it may have to load and the firmware
//! that these may ask for. There is one for virtual machines and one for servers: a [`Flavour`].
//!
//! The initramfs is a newc archive (kernel documentation, `early-userspace/buffer-format`),
//! compressed with zstd, and depends on its contents only: no times, no inode numbers of the
//! machine it was made on. Modules lie under `/lib/modules/VERSION` with the `modules.dep`
//! and `modules.alias` that depmod makes for exactly these.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    dist::without_fail_points,
    shell::{output, run},
};

/// For which machines an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Flavour {
    /// Debian's cloud kernel: virtual machines, and NVMe.
    #[default]
    Cloud,
    /// Debian's full kernel with the drivers of servers' disks, network cards, BMCs and watchdogs.
    Metal,
}

impl Flavour {
    /// Where its image lies in the cache.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Cloud => "installer",
            Self::Metal => "installer-metal",
        }
    }

    /// The package that depends on the newest kernel.
    fn kernel(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Metal => "linux-image-amd64",
        }
    }

    fn modules(self) -> impl Iterator<Item = &'static str> {
        let more: &[_] = match self {
            Self::Cloud => &[],
            Self::Metal => METAL,
        };
        MODULES.iter().chain(more).copied()
    }

    /// Packages of firmware that its modules ask for.
    fn firmware(self) -> &'static [&'static str] {
        match self {
            Self::Cloud => &[],
            Self::Metal => FIRMWARE,
        }
    }
}

/// What an installer image consists of; written beside it as `manifest.json`.
#[derive(Serialize)]
struct Manifest {
    /// Kernel version, as `uname -r` tells it.
    kernel: String,
    /// Debian package the kernel comes from, with its version.
    package: String,
    /// Modules in the initramfs.
    modules: Vec<String>,
    /// Firmware for them in the initramfs, by its path there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    firmware: Vec<String>,
    /// SHA-256 of `kernel`, `initramfs`, and the `init` inside.
    sha256: BTreeMap<&'static str, String>,
}

/// Makes `kernel`, `initramfs` and `manifest.json` in `out`; what is downloaded stays
/// beside it. Fails where apt does not know the flavour's packages of firmware, unless it is to be
/// `without_firmware`. Files are replaced whole, so that a server of the directory never sees half of one.
pub(crate) fn build(flavour: Flavour, without_firmware: bool, out: &Path) -> Result<()> {
    let work = out.with_extension("work");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;

    let built = build_installer()?;
    let init = fs::read(&built).context("cannot read the installer just built")?;
    without_fail_points(&built, &init)?;
    let kernel = debian_kernel(flavour, &work)?;
    let modules = reduced_modules(flavour, &kernel, &work.join("reduced"))?;
    let packages = if without_firmware { &[] } else { flavour.firmware() };
    let firmware = firmware(packages, &work, &work.join("reduced"))?;

    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "lib"] {
        archive.directory(directory);
    }
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, &init);
    for (path, bytes) in modules.iter().chain(&firmware) {
        archive.file(path, 0o644, bytes);
    }
    let initramfs = zstd::encode_all(&archive.finish()[..], 19)?;
    let vmlinuz = fs::read(&kernel.image)?;

    let sha256 = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let manifest = Manifest {
        kernel: kernel.version,
        package: kernel.package,
        modules: modules.keys().filter_map(|path| Some(Path::new(path).file_name()?.to_str()?.to_owned())).collect(),
        firmware: firmware.into_keys().collect(),
        sha256: [("kernel", sha256(&vmlinuz)), ("initramfs", sha256(&initramfs)), ("init", sha256(&init))].into(),
    };
    replace(&out.join("kernel"), &vmlinuz)?;
    replace(&out.join("initramfs"), &initramfs)?;
    replace(&out.join("manifest.json"), &serde_json::to_vec_pretty(&manifest)?)
}

/// What virtual machines and most servers' NVMe need; dependencies come by themselves. Some
/// of it is built into one kernel and a module of the next.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "virtio_rng",
    "sd_mod",
    "nvme",
    "efivarfs",
    "softdog",
    // The toolbox's file system, and room for changes over it.
    "loop",
    "squashfs",
    "overlay",
    // What people mount who rescue a machine.
    "ext4",
    "xfs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "dm_mod",
    "raid1",
    "crc32c_intel",
    "crc32_pclmul",
    "crct10dif_pclmul",
];

/// What servers need beside that: disks and the controllers they hang off, network cards, BMCs,
/// watchdogs, TPMs, and what counts memory errors.
const METAL: &[&str] = &[
    "ahci",
    "ata_piix",
    "vmd",
    "isci",
    "megaraid_sas",
    "mpt3sas",
    "mpi3mr",
    "hpsa",
    "aacraid",
    "smartpqi",
    "e1000",
    "e1000e",
    "igb",
    "igc",
    "ixgbe",
    "i40e",
    "ice",
    "bnx2",
    "bnx2x",
    "bnxt_en",
    "tg3",
    "mlx4_core",
    "mlx4_en",
    "mlx5_core",
    "qede",
    "sfc",
    "be2net",
    "cxgb4",
    "enic",
    "atlantic",
    "ipmi_si",
    "ipmi_ssif",
    "ipmi_devintf",
    "lpc_ich",
    "i2c_i801",
    "iTCO_wdt",
    "wdat_wdt",
    "sp5100_tco",
    "hpwdt",
    "tpm_tis",
    "tpm_crb",
    "sb_edac",
    "skx_edac",
    "i10nm_edac",
    "ie31200_edac",
    "amd64_edac",
];

/// Debian packages (component non-free-firmware) with what [`METAL`]'s modules load: the programs
/// of Broadcom's, QLogic's and Intel's network cards.
const FIRMWARE: &[&str] = &["firmware-bnx2", "firmware-bnx2x", "firmware-misc-nonfree", "firmware-qlogic"];

/// Builds the static binary and says where it is.
fn build_installer() -> Result<PathBuf> {
    let target = "x86_64-unknown-linux-gnu";
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        // With a target named, these flags do not reach build scripts and procedural macros.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // Entropy is the kernel's. That which aws-lc gathers besides, by timing the processor before the first
        // key, takes a fifth of a start on an emulated one.
        .env("AWS_LC_SYS_NO_JITTER_ENTROPY", "1")
        .args(["build", "--locked", "--package", "rackhand-installer", "--bin", "rackhand-installer"])
        .args(["--profile", "installer", "--target", target, "--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the installer does not build");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "rackhand-installer")
        .find_map(|message| Some(message["executable"].as_str()?.into()))
        .context("cargo did not say where it put the installer")
}

struct Kernel {
    version: String,
    package: String,
    image: PathBuf,
    /// The unpacked package.
    tree: PathBuf,
}

/// Debian's newest kernel of this flavour, as far as apt on this machine knows.
fn debian_kernel(flavour: Flavour, work: &Path) -> Result<Kernel> {
    let newest = flavour.kernel();
    let depends = output(Command::new("apt-cache").args(["depends", newest]))?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-")))
        .with_context(|| format!("apt on this machine knows no {newest}: run `apt-get update` first"))?;
    let version = name
        .strip_prefix("linux-image-")
        .map(|version| version.trim_end_matches("-unsigned").to_owned())
        .context("the kernel package has a strange name")?;
    let tree = work.join("kernel");
    let package = unpacked(name, work, &tree)?;
    let image = tree.join("boot").join(format!("vmlinuz-{version}"));
    Ok(Kernel { version, package, image, tree })
}

/// Downloads a Debian package, unless it is there, and unpacks it into an empty `tree`, without
/// installing it. Its name with its version.
fn unpacked(name: &str, work: &Path, tree: &Path) -> Result<String> {
    // One line: 'URI' FILE SIZE HASH.
    let uris = output(Command::new("apt-get").args(["download", "--print-uris", name]))?;
    let file = uris.split_whitespace().nth(1).context("apt does not say which file it would download")?;
    let package = work.join(file);
    if !package.exists() {
        run(Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", name])
            .stdout(Stdio::null())
            .current_dir(work))?;
    }
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(tree))?;
    Ok(file.trim_end_matches(".deb").to_owned())
}

/// Of the firmware in these packages, what the modules in `reduced` say that they may load, by its
/// path in the archive. Modules name several versions of one: those that Debian has are taken.
fn firmware(packages: &[&str], work: &Path, reduced: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut trees = Vec::new();
    for name in packages {
        let known = output(Command::new("apt-cache").args(["show", "--no-all-versions", name]));
        if !known.is_ok_and(|text| text.contains("Package: ")) {
            bail!(
                "apt on this machine knows no {name}: add the component non-free-firmware to its sources and run \
                 `apt-get update`, or say --without-firmware for machines whose network cards need none"
            );
        }
        let tree = work.join(name);
        unpacked(name, work, &tree)?;
        trees.extend(["lib/firmware", "usr/lib/firmware"].map(|place| tree.join(place)));
    }
    let mut files = BTreeMap::new();
    if trees.is_empty() {
        return Ok(files);
    }
    for module in modules_in(reduced)? {
        let wanted = output(Command::new("modinfo").args(["--field", "firmware"]).arg(&module))?;
        for name in wanted.lines().map(str::trim).filter(|name| !name.is_empty()) {
            let found = trees.iter().map(|tree| tree.join(name)).find(|path| path.is_file());
            if let Some(found) = found {
                files.insert(format!("lib/firmware/{name}"), fs::read(found)?);
            }
        }
    }
    Ok(files)
}

/// Modules below a directory.
fn modules_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut pending = vec![directory.to_owned()];
    let mut modules = Vec::new();
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "ko") {
                modules.push(path);
            }
        }
    }
    modules.sort();
    Ok(modules)
}

/// The modules wanted and what they depend on, with depmod's tables for them, by their paths
/// in the archive.
fn reduced_modules(flavour: Flavour, kernel: &Kernel, reduced: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let directory = Path::new("lib/modules").join(&kernel.version);
    let depmod = |tree: &Path| run(Command::new("depmod").arg("-b").arg(tree).arg(&kernel.version));
    depmod(&kernel.tree)?;

    let full = kernel.tree.join(&directory);
    let table = fs::read_to_string(full.join("modules.dep"))?;
    let dependencies: BTreeMap<String, (&str, Vec<&str>)> = table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs.split_whitespace().collect())))
        .collect();
    let builtin = fs::read_to_string(full.join("modules.builtin"))?;

    if reduced.exists() {
        fs::remove_dir_all(reduced)?;
    }
    fs::create_dir_all(reduced.join(&directory))?;
    for wanted in flavour.modules() {
        let Some((path, needs)) = dependencies.get(wanted) else {
            if builtin.lines().any(|path| module_name(path) == wanted) {
                continue;
            }
            bail!("kernel {} has no module {wanted}", kernel.version);
        };
        for path in needs.iter().chain([path]) {
            let to = reduced.join(&directory).join(path);
            fs::create_dir_all(to.parent().expect("a module lies in a directory"))?;
            fs::copy(full.join(path), to)?;
        }
    }
    for table in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(full.join(table), reduced.join(&directory).join(table))?;
    }
    depmod(reduced)?;

    let tables = ["modules.dep", "modules.alias"].map(|table| reduced.join(&directory).join(table));
    let named = |path: PathBuf| {
        let name = path.strip_prefix(reduced)?.to_str().context("a module's name is not UTF-8")?;
        Ok((name.to_owned(), fs::read(&path)?))
    };
    modules_in(reduced)?.into_iter().chain(tables).map(named).collect()
}

/// What the kernel calls the module in this file: underscores, no path, no suffix.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// A newc archive in the making. Directories of a file are made before it.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: Vec<String>,
}

impl Archive {
    fn directory(&mut self, path: &str) {
        if self.directories.iter().any(|known| known == path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.directories.push(path.to_owned());
        self.entry(path, 0o040_755, (0, 0), &[]);
    }

    fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, 0o100_000 | permissions, (0, 0), bytes);
    }

    /// A character device.
    fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, 0o020_600, (major, minor), &[]);
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) {
        self.entries += 1;
        let len = u32::try_from(bytes.len()).expect("no file here reaches 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("paths are short");
        // inode, mode, uid, gid, links, mtime, size, device, device number, name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, major, minor, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("part");
    fs::write(&unfinished, bytes).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o644))?;
    fs::rename(&unfinished, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_unpacks_what_the_archive_holds() {
        let mut archive = Archive::default();
        archive.file("lib/modules/a.ko", 0o644, b"module");
        archive.file("init", 0o755, b"program");
        let place = std::env::temp_dir().join(format!("rackhand-cpio-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("archive"), archive.finish()).unwrap();
        let status = Command::new("sh").args(["-c", "cpio -i --quiet < archive"]).current_dir(&place).status().unwrap();
        assert!(status.success());
        assert_eq!(fs::read(place.join("lib/modules/a.ko")).unwrap(), b"module");
        assert_eq!(fs::metadata(place.join("init")).unwrap().permissions().mode() & 0o777, 0o755);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_modules_name_is_the_kernels() {
        assert_eq!(module_name("kernel/arch/x86/crypto/crc32c-intel.ko"), "crc32c_intel");
        assert_eq!(module_name("kernel/drivers/block/virtio_blk.ko.xz"), "virtio_blk");
    }
}
