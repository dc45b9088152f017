//! A system of the catalogue as an image for machines: raw, GPT, bootable by BIOS and by UEFI, told its settings
//! by a `cidata` drive.
//!
//! mmdebstrap makes the tree from the package sources of this machine; nothing is mounted:
//! the file systems are made by `mke2fs -d`, `mkfs.fat` and mtools. GRUB is put together here
//! instead of by `grub-install`, which wants a mounted disk:
//!
//! | bytes | what |
//! |---|---|
//! | first 440 | `boot.img`, told the sector of the next row |
//! | BIOS boot partition | `core.img`, told where its own rest is |
//! | EFI system partition | `EFI/BOOT/BOOTX64.EFI`, the path firmware tries by itself |
//! | root | ext4; both GRUBs find it by its UUID and read `/boot/grub/grub.cfg` |
//!
//! Invariants: no host keys, no machine id, no passwords; file system UUIDs are fresh for
//! each build. Must run as root: the tree has other owners' files.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{
    catalogue::{self, Entry, Family, Firmware},
    shell::{SIGN_OF_LIFE, output, run},
};

/// Makes the image of Debian 12 at `out`, unless the one there was made by this same recipe.
/// `cache` holds the tree while it is made, and goes on holding nothing.
pub(crate) fn build(out: &Path, cache: &Path) -> Result<()> {
    let entry = Entry::parse(catalogue::DEBIAN_12)?;
    let recipe = hex::encode(Sha256::digest([include_str!("os_image.rs"), catalogue::DEBIAN_12].concat()));
    let stamp = out.with_extension("recipe");
    println!(
        "   {} for {:?}, of {} packages and what they need",
        entry.title,
        entry.firmware,
        entry.image.packages.len()
    );
    if out.exists() && fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == recipe) {
        return Ok(());
    }
    let work = cache.join("os-image");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot clear {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;

    let ids = Ids { root: uuid()?, esp: uuid()?[..8].to_uppercase() };
    let tree = work.join("tree");
    match entry.family {
        Family::Debian => bootstrap(&entry, &work, &tree)?,
    }
    configure(&entry, &tree, &ids)?;
    println!("   putting the image together");
    let unfinished = out.with_extension("part");
    assemble(&entry, &work, &tree, &ids, &unfinished)?;
    fs::rename(&unfinished, out)?;
    fs::write(&stamp, recipe)?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

struct Ids {
    root: String,
    esp: String,
}

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// Small, because every machine writes and sums all of it; the root grows at the first start.
const SIZE: u64 = 640 * MIB;
const BIOS_BOOT: u64 = MIB;
const ESP: u64 = 2 * MIB;
/// On a chunk's boundary, so that equal files make equal chunks in the next build.
const ROOT: u64 = 64 * MIB;
/// The backup GPT stands behind it.
const ROOT_END: u64 = SIZE - MIB;

fn bootstrap(entry: &Entry, work: &Path, tree: &Path) -> Result<()> {
    let overlay = work.join("overlay");
    write(&overlay.join("etc/initramfs-tools/conf.d/rackhand"), "MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\n")?;
    write(&overlay.join("etc/initramfs-tools/modules"), &(entry.image.initramfs_modules.join("\n") + "\n"))?;
    let sources = work.join("sources.list");
    fs::write(&sources, host_sources(&entry.image.suite)?)?;

    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=apt", "--format=directory"])
        .arg(format!("--include={}", entry.image.packages.join(",")))
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*"])
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    for option in host_apt_options()? {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    mmdebstrap
        .arg(format!("--essential-hook=sync-in {} /", overlay.display()))
        .arg(format!("--customize-hook=chroot \"$1\" systemctl enable {}", entry.image.enabled_units.join(" ")))
        .arg(format!("--customize-hook=chroot \"$1\" systemctl mask {}", entry.image.masked_units.join(" ")))
        .arg(&entry.image.suite)
        .arg(tree)
        .arg(&sources);
    in_phases(&mut mmdebstrap)
}

/// Runs a program that names its phases as mmdebstrap does (`I: installing …`): a line for
/// each as it begins and a sign of life in long ones; everything it said when it fails.
pub(crate) fn in_phases(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {name}: is it installed?"))?;
    let complaints = child.stderr.take().context("its standard error is not piped")?;
    let (tell, told) = mpsc::channel();
    let reader = thread::spawn(move || {
        // A progress bar rewrites its line by carriage returns: those are no lines.
        for line in BufReader::new(complaints).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    let start = Instant::now();
    let mut said = Vec::new();
    let mut phase = "starting".to_owned();
    loop {
        match told.recv_timeout(SIGN_OF_LIFE) {
            Ok(line) => {
                let next = line.rsplit('\r').next().and_then(|line| line.strip_prefix("I: "));
                // Hooks are short, and named by their whole command.
                if let Some(next) = next.filter(|next| !next.contains("hook")) {
                    phase = next.trim_end_matches('.').to_owned();
                    println!("   {:>4.0} s  {phase}", start.elapsed().as_secs_f64());
                }
                said.push(line);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                println!("   {:>4.0} s  … still {phase}", start.elapsed().as_secs_f64());
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait()?;
    // It sent its last line before it hung up.
    let _ = reader.join();
    ensure!(status.success(), "{name} failed ({status}):\n{}", said.join("\n"));
    Ok(())
}

/// Debian's own package sources as apt on this machine is configured to reach them.
pub(crate) fn host_sources(suite: &str) -> Result<String> {
    let format = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let list = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
        "Origin: Debian",
    ]))?;
    let of_suite = |line: &&str| line.split(' ').any(|word| word.split(['-', '/']).next() == Some(suite));
    let lines: Vec<_> = list.lines().filter(of_suite).collect();
    ensure!(!lines.is_empty(), "apt on this machine knows no packages of {suite}: run `apt-get update` first");
    Ok(lines.join("\n") + "\n")
}

/// How this machine's apt reaches its sources: proxies, certificates, validity checks.
pub(crate) fn host_apt_options() -> Result<Vec<String>> {
    let dump = output(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let worth = |line: &&str| {
        ["Acquire::http", "Acquire::https", "Acquire::Check-"].iter().any(|key| line.starts_with(key))
            && !line.ends_with("\"\";")
            && !line.contains("::::")
    };
    Ok(dump.lines().filter(worth).map(|line| line.trim_end_matches(';').to_owned()).collect())
}

fn configure(entry: &Entry, tree: &Path, ids: &Ids) -> Result<()> {
    let (family, user) =
        (fs::read_to_string(tree.join("etc/cloud/cloud.cfg"))?, format!("name: {}", entry.default_user));
    ensure!(family.lines().any(|line| line.trim() == user), "its cloud-init makes no user {}", entry.default_user);
    let release = fs::read_to_string(tree.join("etc/os-release"))?;
    let version = format!("VERSION_ID=\"{}\"", entry.version);
    ensure!(release.lines().any(|line| line == version), "{} is not version {}", entry.image.suite, entry.version);
    for unwanted in ["etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/resolv.conf"] {
        remove(&tree.join(unwanted))?;
    }
    for entry in fs::read_dir(tree.join("etc/ssh"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ssh_host_")) {
            remove(&path)?;
        }
    }
    remove(&tree.join("var/lib/dbus/machine-id"))?;
    symlink("/run/systemd/resolve/stub-resolv.conf", tree.join("etc/resolv.conf"))?;

    let root = &ids.root;
    write(&tree.join("etc/machine-id"), "")?;
    write(&tree.join("etc/hostname"), "debian\n")?;
    write(&tree.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")?;
    // The EFI system partition is not mounted: its loader is complete and never updated.
    write(&tree.join("etc/fstab"), &format!("UUID={root} / ext4 errors=remount-ro 0 1\n"))?;
    write(&tree.join("etc/cloud/cloud.cfg.d/90_rackhand.cfg"), &entry.image.cloud_init)?;
    // Whoever hears that the system runs may cut its power: host keys that are still on their way
    // to the disk would be empty files, and nobody could log in any more.
    let sync = tree.join("var/lib/cloud/scripts/per-boot/sync");
    write(&sync, "#!/bin/sh\nexec sync\n")?;
    fs::set_permissions(&sync, fs::Permissions::from_mode(0o755))?;
    // cloud-init's generator would look at every disk to decide what is decided here.
    let (generators, wanted) =
        (tree.join("etc/systemd/system-generators"), "etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&generators)?;
    symlink("/dev/null", generators.join("cloud-init-generator"))?;
    symlink("/lib/systemd/system/cloud-init.target", tree.join(wanted).join("cloud-init.target"))?;
    // Nothing has changed under /usr since this tree was made, which systemd would otherwise
    // find out by making its hardware database and message catalogue again.
    for updated in ["etc/.updated", "var/.updated"] {
        write(&tree.join(updated), "# As systemd-update-done(8) leaves it.\n")?;
    }
    write(&tree.join("boot/grub/grub.cfg"), &grub_cfg(root, &entry.image.kernel_command_line))
}

fn grub_cfg(root: &str, command_line: &str) -> String {
    // /vmlinuz and /initrd.img are links that kernel packages keep on the newest kernel.
    format!(
        "set timeout=0\n\
         linux /vmlinuz root=UUID={root} {command_line}\n\
         initrd /initrd.img\n\
         boot\n"
    )
}

fn assemble(entry: &Entry, work: &Path, tree: &Path, ids: &Ids, image: &Path) -> Result<()> {
    remove(image)?;
    File::create(image)?.set_len(SIZE)?;
    let sectors = |from: u64, to: u64| format!("{}:{}", from / SECTOR, to / SECTOR - 1);
    run(Command::new("sgdisk")
        .args(["--clear", "--set-alignment=1"])
        .args([format!("--new=1:{}", sectors(BIOS_BOOT, ESP)), "--typecode=1:ef02".into()])
        .args([format!("--new=2:{}", sectors(ESP, ROOT)), "--typecode=2:ef00".into()])
        // Type "Linux root (x86-64)".
        .args([format!("--new=3:{}", sectors(ROOT, ROOT_END)), "--typecode=3:8304".into()])
        .args(["--change-name=1:bios", "--change-name=2:esp", "--change-name=3:root"])
        .arg(image)
        .stdout(Stdio::null()))?;

    // GRUB 2.06 cannot read the features that are switched off.
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-L", "rackhand-root", "-U", &ids.root, "-m", "1"])
        .args(["-O", "^metadata_csum_seed,^orphan_file"])
        .args(["-E", &format!("offset={ROOT},lazy_itable_init=0,lazy_journal_init=0")])
        .arg("-d")
        .arg(tree)
        .arg(image)
        .arg(format!("{}k", (ROOT_END - ROOT) / 1024)))?;

    let embedded = work.join("grub-embedded.cfg");
    fs::write(&embedded, format!("search.fs_uuid {} root\nset prefix=($root)/boot/grub\n", ids.root))?;
    for firmware in &entry.firmware {
        match firmware {
            Firmware::Bios => bios_loader(work, &embedded, image)?,
            Firmware::Uefi => esp(work, ids, &embedded, image)?,
        }
    }
    Ok(())
}

fn esp(work: &Path, ids: &Ids, embedded: &Path, image: &Path) -> Result<()> {
    let loader = work.join("BOOTX64.EFI");
    grub_mkimage("x86_64-efi", embedded, &loader)?;
    let volume = work.join("esp.fat");
    File::create(&volume)?.set_len(ROOT - ESP)?;
    run(Command::new("mkfs.fat")
        .args(["-F", "32", "-s", "1", "-n", "ESP", "-i", &ids.esp])
        .arg(&volume)
        .stdout(Stdio::null()))?;
    run(Command::new("mmd").arg("-i").arg(&volume).args(["::EFI", "::EFI/BOOT"]))?;
    run(Command::new("mcopy").arg("-i").arg(&volume).arg(&loader).arg("::EFI/BOOT/BOOTX64.EFI"))?;
    copy_sparse(&volume, image, ESP)
}

/// Puts GRUB's two BIOS stages where `grub-bios-setup` would.
fn bios_loader(work: &Path, embedded: &Path, image: &Path) -> Result<()> {
    let core_path = work.join("core.img");
    grub_mkimage("i386-pc", embedded, &core_path)?;
    let mut core = fs::read(&core_path)?;
    let sectors = core.len().div_ceil(SECTOR as usize);
    core.resize(sectors * SECTOR as usize, 0);
    ensure!(core.len() as u64 <= ESP - BIOS_BOOT, "GRUB's core image does not fit its partition");

    // The last entry of the first sector's block list: where the rest of core.img starts
    // (64 bits) and how many sectors it has (16 bits); the load segment behind stays.
    let start = BIOS_BOOT / SECTOR;
    core[0x1f4..0x1fc].copy_from_slice(&(start + 1).to_le_bytes());
    core[0x1fc..0x1fe].copy_from_slice(&u16::try_from(sectors - 1)?.to_le_bytes());

    let mut boot = [0; 440];
    File::open("/usr/lib/grub/i386-pc/boot.img").context("grub-pc-bin is not installed")?.read_exact(&mut boot)?;
    boot[0x5c..0x64].copy_from_slice(&start.to_le_bytes());
    // A jump over a fix for BIOSes that pass a wrong drive number: taken out for hard disks.
    boot[0x66..0x68].copy_from_slice(&[0x90, 0x90]);

    let disk = File::options().write(true).open(image)?;
    disk.write_all_at(&boot, 0)?;
    disk.write_all_at(&core, BIOS_BOOT)?;
    Ok(())
}

fn grub_mkimage(format: &str, embedded: &Path, out: &Path) -> Result<()> {
    let firmware: &[&str] = if format == "i386-pc" { &["biosdisk"] } else { &["fat", "efi_gop"] };
    run(Command::new("grub-mkimage")
        .args(["-O", format, "-p", "/boot/grub", "-c"])
        .arg(embedded)
        .arg("-o")
        .arg(out)
        .args(["part_gpt", "ext2", "search", "search_fs_uuid", "normal", "configfile", "linux", "boot", "echo"])
        .args(firmware))
}

/// Copies a file into the image at `offset`, leaving holes where it has only zeros.
fn copy_sparse(from: &Path, image: &Path, offset: u64) -> Result<()> {
    let mut from = File::open(from)?;
    let mut image = File::options().write(true).open(image)?;
    let mut block = vec![0; 1 << 16];
    let mut at = offset;
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            image.seek(SeekFrom::Start(at))?;
            image.write_all(&block[..read])?;
        }
        at += read as u64;
    }
}

fn uuid() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

pub(crate) fn write(path: &PathBuf, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
