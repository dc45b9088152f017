//! Stories of the whole product, told on a virtual rack. A story's name is the fact it
//! protects. All are in one program, so that they wait side by side.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

mod adopted;
mod away;
mod baseline;
mod bmc;
mod console;
mod deploy;
mod discovery;
mod disks;
mod firmware;
mod firmware_scripts;
mod hardware;
mod health;
mod identity;
mod images;
mod kills;
mod ladder;
mod leased;
mod parts;
mod prometheus;
mod regain;
mod reload;
mod replaced;
mod rescue;
mod rotation;
mod ssh;
mod testing;
mod top;
mod upkeep;
mod webhooks;
