//! A simulated BMC as a process of its own.

use std::sync::Arc;

use rackhand_bmc_sim::{Addresses, Bench, Personality, Simulator};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let personality = Personality::preset("generic", 1).expect("it is among the presets");
    let running = Simulator::start(
        personality,
        Arc::new(Bench::default()),
        Addresses { ipmi: "127.0.0.1:6230".parse()?, ..Addresses::default() },
    )
    .await?;
    tracing::info!(ipmi = %running.ipmi, "listening");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
