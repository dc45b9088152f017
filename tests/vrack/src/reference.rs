//! What a user would write an image with instead of our installer: `curl | zstd -d | dd` in
//! a RAM system on the same virtual machine, from a web server on the same node.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    network::{Cabling, Place, tap},
    run::{output, run},
};

const PROGRAMS: &[&str] = &["/bin/busybox", "/usr/bin/curl", "/usr/bin/zstd", "/bin/dd"];
const PORT: u16 = 9099;
const PATIENCE: Duration = Duration::from_secs(600);

/// The initial RAM disk: the installer's kernel modules, the three programs and a script.
pub(crate) fn initramfs(installer: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let tree = directory.join("reference");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree)?;
    let unpack = format!(
        "(zstd -dcq {0} 2>/dev/null || gzip -dc {0}) | cpio -idm --quiet",
        installer.join("initramfs").display()
    );
    output(Command::new("sh").args(["-c", &unpack]).current_dir(&tree))?;
    for program in PROGRAMS {
        let libraries = run("ldd", &[program]).unwrap_or_default();
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([*program]) {
            let to = tree.join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("no parent")?)?;
            fs::copy(file, &to)?;
        }
    }
    let script = format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mkdir -p /dev /proc /sys\n\
         $b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys\n\
         for m in virtio_pci virtio_net virtio_blk; do $b modprobe $m; done\n\
         $b ip link set eth0 up; $b ip addr add 10.77.0.250/24 dev eth0\n\
         until /usr/bin/curl -sf http://10.77.0.1:{PORT}/ready >/dev/null; do $b sleep 0.2; done\n\
         read start rest </proc/uptime\n\
         /usr/bin/curl -s http://10.77.0.1:{PORT}/image.zst | /usr/bin/zstd -dc | \
         /bin/dd of=/dev/vda bs=4M iflag=fullblock oflag=direct 2>/dev/null; $b sync\n\
         read end rest </proc/uptime\n\
         echo REFERENCE $start $end\n\
         $b poweroff -f\n"
    );
    let init = tree.join("init");
    let _ = fs::remove_file(&init);
    fs::write(&init, script)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let packed = directory.join("reference.cpio");
    let pack = format!("find . | cpio -o -H newc --quiet > {}", packed.display());
    output(Command::new("sh").args(["-c", &pack]).current_dir(&tree))?;
    Ok(packed)
}

/// Writes the image to a fresh disk in a machine of the rack's kind; seconds it took.
pub(crate) fn write(
    cabling: &Cabling,
    installer: &Path,
    initramfs: &Path,
    directory: &Path,
    image: &Path,
    disk: u64,
) -> anyhow::Result<f64> {
    let served = directory.join("served");
    fs::create_dir_all(&served)?;
    let compressed = served.join("image.zst");
    if !compressed.exists() {
        output(Command::new("zstd").args(["-3", "-q", "-f", "-o"]).arg(&compressed).arg(image))?;
        fs::File::create(served.join("ready"))?.write_all(b"ready\n")?;
    }
    let mut server = cabling
        .command(Place::Node, "busybox")
        .args(["httpd", "-f", "-p", &format!("10.77.0.1:{PORT}"), "-h"])
        .arg(&served)
        .spawn()?;
    let result = boot(cabling, installer, initramfs, directory, disk);
    server.kill()?;
    server.wait()?;
    result
}

fn boot(cabling: &Cabling, installer: &Path, initramfs: &Path, directory: &Path, disk: u64) -> anyhow::Result<f64> {
    let (file, console) = (directory.join("reference.raw"), directory.join("reference.log"));
    fs::File::create(&file)?.set_len(disk)?;
    let mut machine = cabling
        .command(Place::Lan, "qemu-system-x86_64")
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            "640",
            "-display",
            "none",
            "-nodefaults",
        ])
        .arg("-kernel")
        .arg(installer.join("kernel"))
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0,115200 quiet panic=5", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-drive")
        .arg(format!(
            "if=none,id=disk,file={},format=raw,cache=writeback,discard=unmap,detect-zeroes=unmap",
            file.display()
        ))
        .args(["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"])
        .arg("-netdev")
        .arg(format!("tap,id=net,ifname={},script=no,downscript=no", tap(0)))
        .args(["-device", "virtio-net-pci,netdev=net,mac=52:54:00:77:00:fa,romfile="])
        .stdin(Stdio::null())
        .spawn()?;
    let end = Instant::now() + PATIENCE;
    while machine.try_wait()?.is_none() {
        if Instant::now() > end {
            machine.kill()?;
            machine.wait()?;
            bail!("the reference did not end; its console is {}", console.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    let line = said.lines().find_map(|line| line.split_once("REFERENCE ")).context("the reference told no times")?.1;
    let times: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match times[..] {
        [start, end] => Ok(end - start),
        _ => bail!("the reference told {line:?}"),
    }
}
