//! `/init` of the installer's initramfs.

use std::{convert::Infallible, fs, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use rackhand_common::pki;
use rackhand_installer::{
    cmdline, cmdline::Parameters, inventory, log::Log, machine::Hardware, modules::Modules, network, pid1, session,
};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("rackhand-installer is the first process of a machine started by Rackhand, and nothing else");
        return ExitCode::FAILURE;
    }
    pid1::restart_after_panic();
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .with_target(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .init();
    match start(log) {
        Ok(never) => match never {},
        // The hook waits a little and restarts; PXE may bring a better start.
        Err(error) => panic!("cannot go on: {error:#}"),
    }
}

fn start(log: Log) -> anyhow::Result<Infallible> {
    pid1::mount_kernel_file_systems().context("cannot mount the kernel's file systems")?;
    pki::install_crypto();
    let line = fs::read_to_string("/proc/cmdline").context("cannot read the kernel command line")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "rackhand installer");

    let mut modules = Modules::of_running_kernel().context("cannot read the module tables")?;
    let parameters = cmdline::parse(&line)?;
    // The card must be there; a machine without disks goes on after a moment.
    let card = || inventory::cards().iter().any(|nic| nic.mac == parameters.mac);
    modules.load_for_devices(Duration::from_secs(3), || card() && inventory::any_disk());
    if inventory::firmware() == rackhand_common::machine::Firmware::Uefi {
        modules.load("efivarfs");
    }
    if !fs::exists("/dev/watchdog").unwrap_or(false) {
        modules.load("softdog");
    }
    if let Err(error) = pid1::mount_efi_variables() {
        tracing::warn!(%error, "the firmware's variables are out of reach");
    }
    tracing::info!(disks = inventory::any_disk(), "devices are there");

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(work(parameters, log))?;
    pid1::restart().context("cannot restart")
}

/// Returns when the machine is to restart.
async fn work(parameters: Parameters, log: Log) -> anyhow::Result<()> {
    let mut orphans = signal(SignalKind::child())?;
    let reap = async {
        while orphans.recv().await.is_some() {
            pid1::reap();
        }
    };
    let connected = async {
        while let Err(error) = network::configure(&parameters).await {
            tracing::error!(cause = std::error::Error::source(&error), "{error}");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        session::run(parameters, Arc::new(Hardware), log).await
    };
    tokio::select! {
        ended = connected => Ok(ended?),
        () = pid1::feed_watchdog() => anyhow::bail!("the watchdog's task ended"),
        () = reap => anyhow::bail!("the kernel stopped telling of orphans"),
    }
}
