//! A machine of the virtual rack: QEMU with a boot ROM nobody here wrote, a blank disk, a
//! power button and, for UEFI, a variable store.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use rackhand_common::machine::{Firmware, Mac, Power};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    network::tap,
    run::{output, run},
};

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// How long QEMU may take to start or to die.
const SETTLE: Duration = Duration::from_secs(20);

/// What is on a machine's label; kept in its directory, so that the power driver, a process
/// of its own, finds everything there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) serial: String,
    pub(crate) mac: Mac,
    pub(crate) firmware: Firmware,
    /// Which tap it is plugged into.
    slot: usize,
    /// The namespace of the provisioning network.
    namespace: String,
    /// What its parts are.
    body: Body,
}

/// What a machine is built of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Card and disk of virtual machines.
    Virtual,
    /// Card and disks that servers have: e1000, SATA at AHCI, NVMe; SMBIOS tells of its memory, and there is a
    /// way to a BMC, which is a program of its own.
    Metal,
}

/// Where the BMC of a machine of metal waits for it, in the machine's namespace.
pub(crate) const IPMI: &str = "127.0.0.1";

/// What the memory slots of a machine of metal are called, with their numbers behind.
pub(crate) const DIMM: &str = "DIMM_A";

/// A machine and the directory it lives in.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    directory: PathBuf,
    pub(crate) label: Label,
}

impl Machine {
    /// Racks a machine with a blank disk of `disk` bytes.
    pub(crate) fn rack(
        parent: &Path,
        namespace: &str,
        slot: usize,
        firmware: Firmware,
        disk: u64,
    ) -> anyhow::Result<Self> {
        let label = Label {
            serial: format!("VR{slot:04}"),
            mac: Mac([0x52, 0x54, 0x00, 0x77, 0x00, slot as u8 + 1]),
            firmware,
            slot,
            namespace: namespace.to_owned(),
            body: Body::Virtual,
        };
        let directory = parent.join(&label.serial);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("label.json"), serde_json::to_vec_pretty(&label)?)?;
        File::create(directory.join("disk.raw"))?.set_len(disk)?;
        if firmware == Firmware::Uefi {
            fs::copy(OVMF_VARS, directory.join("variables.fd")).context("is Debian's package ovmf installed?")?;
        }
        Ok(Self { directory, label })
    }

    /// All machines racked in `parent`.
    pub(crate) fn all(parent: &Path) -> anyhow::Result<Vec<Self>> {
        let mut machines = Vec::new();
        for entry in fs::read_dir(parent)? {
            let directory = entry?.path();
            let label = serde_json::from_slice(&fs::read(directory.join("label.json"))?)?;
            machines.push(Self { directory, label });
        }
        machines.sort_by(|a, b| a.directory.cmp(&b.directory));
        Ok(machines)
    }

    /// The machine with this network card among those racked in `parent`.
    pub(crate) fn find(parent: &Path, mac: Mac) -> anyhow::Result<Self> {
        let found = Self::all(parent)?.into_iter().find(|machine| machine.label.mac == mac);
        found.with_context(|| format!("no machine with network card {mac} in {}", parent.display()))
    }

    /// Where everything of it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which tap it is plugged into, from zero.
    pub(crate) fn slot(&self) -> usize {
        self.label.slot
    }

    /// The TCP port at which its BMC waits for it, when it is of metal.
    pub(crate) fn ipmi_port(&self) -> u16 {
        9100 + self.label.slot as u16
    }

    /// Its SMBIOS UUID.
    pub(crate) fn uuid(&self) -> uuid::Uuid {
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, self.label.serial.as_bytes())
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("disk.raw")
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }

    /// The QEMU it is, while it is on.
    pub(crate) fn pid(&self) -> Option<i32> {
        let pid = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        program.starts_with("qemu").then_some(pid)
    }

    pub(crate) fn power(&self) -> Power {
        if self.pid().is_some() { Power::On } else { Power::Off }
    }

    /// The same machine, which is off, of other parts.
    pub(crate) fn of(mut self, body: Body) -> anyhow::Result<Self> {
        self.label.body = body;
        fs::write(self.directory.join("label.json"), serde_json::to_vec_pretty(&self.label)?)?;
        File::create(self.directory.join("nvme.raw"))?.set_len(1 << 30)?;
        Ok(self)
    }

    /// Presses the power button of a machine that is off.
    pub(crate) fn power_on(&self) -> anyhow::Result<()> {
        let _alone = self.lock()?;
        if self.power() == Power::On {
            return Ok(());
        }
        let once = self.directory.join("network-once");
        let network = once.exists();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.label.namespace)).args(["--", "qemu-system-x86_64"]);
        command.args(["-name", &self.label.serial, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command
            .args(["-m", "640", "-display", "none", "-nodefaults", "-vga", "none", "-daemonize", "-pidfile"])
            .arg(self.pid_file());
        command
            .arg("-smbios")
            .arg(format!("type=1,manufacturer=QEMU,product=virtual-rack,serial={}", self.label.serial));
        command.arg("-uuid").arg(self.uuid().to_string());
        command.arg("-chardev").arg(format!("file,id=console,path={},append=on", self.console_log().display()));
        command.args(["-serial", "chardev:console"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", self.qmp().display()));
        command.arg("-drive").arg(format!(
            "if=none,id=disk,file={},format=raw,cache=writeback,discard=unmap,detect-zeroes=unmap",
            self.disk().display()
        ));
        let serial = &self.label.serial;
        match self.label.body {
            Body::Virtual => {
                command.arg("-device").arg(format!("virtio-blk-pci,drive=disk,serial={serial}-D1"));
            }
            Body::Metal => {
                command.arg("-device").arg(format!("ide-hd,bus=ide.0,drive=disk,serial={serial}-D1"));
                let fast = self.directory.join("nvme.raw");
                command.arg("-drive").arg(format!("if=none,id=fast,file={},format=raw", fast.display()));
                command.arg("-device").arg(format!("nvme,drive=fast,serial={serial}-N1"));
                command
                    .arg("-chardev")
                    .arg(format!("socket,id=ipmi,host={IPMI},port={},reconnect=1", self.ipmi_port()));
                command.args(["-device", "ipmi-bmc-extern,id=bmc,chardev=ipmi", "-device", "isa-ipmi-kcs,bmc=bmc"]);
                command.args(["-smbios", "type=0,vendor=rackhand,version=rackhand-metal"]);
                let memory = format!("type=17,loc_pfx={DIMM},manufacturer=Makers,part=PART-17,serial=M-1,speed=3200");
                command.arg("-smbios").arg(memory);
            }
        }
        command.arg("-netdev").arg(format!("tap,id=net,ifname={},script=no,downscript=no", tap(self.label.slot)));
        let card = match self.label.body {
            Body::Virtual => "virtio-net-pci",
            Body::Metal => "e1000",
        };
        let nic = format!("{card},netdev=net,mac={}", self.label.mac);
        command.args(["-device", "virtio-rng-pci"]);
        match self.label.firmware {
            Firmware::Bios => {
                command.arg("-device").arg(nic);
                command.arg("-boot").arg(if network { "order=cn,once=n" } else { "order=cn" });
            }
            Firmware::Uefi => {
                let variables = self.directory.join("variables.fd");
                if network {
                    let mut store = fs::read(&variables)?;
                    if crate::varstore::boot_from_network_once(&mut store)? {
                        fs::write(&variables, store)?;
                    }
                }
                // OVMF brings its own driver for the card; QEMU's ROM would come before it.
                command.arg("-device").arg(format!("{nic},romfile="));
                command.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}"));
                command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
            }
        }
        output(&mut command).context("starting QEMU")?;
        if network {
            fs::remove_file(once)?;
        }
        self.note("on")
    }

    /// Pulls the plug.
    pub(crate) fn power_off(&self) -> anyhow::Result<()> {
        let _alone = self.lock()?;
        let Some(pid) = self.pid() else { return Ok(()) };
        self.note("off")?;
        run("kill", &["-9", &pid.to_string()])?;
        let patience = Instant::now() + SETTLE;
        while self.pid().is_some() {
            if Instant::now() > patience {
                bail!("QEMU {pid} does not die");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Has the next start boot from the network, as a BMC's one-time override does.
    pub(crate) fn network_boot_once(&self) -> anyhow::Result<()> {
        fs::write(self.directory.join("network-once"), b"")?;
        self.note("network-boot-once")
    }

    /// Takes such an override back.
    pub(crate) fn disk_boot(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.directory.join("network-once")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What was done to its power, oldest first: what a BMC's own log would say.
    pub(crate) fn power_history(&self) -> Vec<String> {
        let history = fs::read_to_string(self.directory.join("power.log")).unwrap_or_default();
        history.lines().map(str::to_owned).collect()
    }

    /// Whether it was switched on and is off all the same: its QEMU was killed.
    pub(crate) fn has_lost_power(&self) -> anyhow::Result<bool> {
        let _alone = self.lock()?;
        let last = self.power_history().into_iter().rfind(|what| what != "network-boot-once");
        Ok(last.is_some_and(|last| last == "on") && self.power() == Power::Off)
    }

    fn note(&self, what: &str) -> anyhow::Result<()> {
        let mut history = File::options().create(true).append(true).open(self.directory.join("power.log"))?;
        writeln!(history, "{what}").map_err(Into::into)
    }

    /// One hand at the power button at a time: the agent's driver and the demo are two processes.
    fn lock(&self) -> anyhow::Result<Flock<File>> {
        let file = File::create(self.directory.join("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    }

    /// Presses the reset button.
    pub(crate) fn reset(&self) -> anyhow::Result<()> {
        self.monitor(json!({"execute": "system_reset"}))
    }

    /// Lets its disk write so many bytes in a second, until it is switched off; zero is as
    /// many as it can.
    pub(crate) fn slow_disk(&self, bytes: u64) -> anyhow::Result<()> {
        self.monitor(json!({
            "execute": "block_set_io_throttle",
            "arguments": {
                "device": "disk", "bps": 0, "bps_rd": 0, "bps_wr": bytes, "iops": 0, "iops_rd": 0, "iops_wr": 0
            }
        }))
    }

    fn monitor(&self, request: serde_json::Value) -> anyhow::Result<()> {
        // A QEMU that just starts has its number before its monitor.
        let end = Instant::now() + SETTLE;
        let stream = loop {
            match UnixStream::connect(self.qmp()) {
                Ok(stream) => break stream,
                Err(error) if self.pid().is_none() || Instant::now() > end => {
                    return Err(error).context("the machine is off");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(SETTLE))?;
        let mut answers = BufReader::new(stream.try_clone()?).lines();
        for request in [json!({"execute": "qmp_capabilities"}), request] {
            writeln!(&stream, "{request}")?;
            loop {
                let answer = answers.next().context("QEMU closed its monitor")??;
                ensure!(!answer.contains("\"error\""), "QEMU refused {request}: {answer}");
                if answer.contains("\"return\"") {
                    break;
                }
            }
        }
        Ok(())
    }

    fn qmp(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }
}
