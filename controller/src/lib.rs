//! The central daemon. [`controller`] builds and spawns everything that runs.
//!
//! [`fleet`] holds the agents' connections, [`workflows`] moves runs on, [`api`] answers
//! operators, [`ssh`] has machines' consoles, [`oidc`] knows people by who vouches for them, [`addresses`] hands addresses out, [`samples`]
//! notes daily how much of pools is used, [`webhooks`] tells other programs what happens, [`images`] imports and serves images, and files of firmware, which [`campaigns`] has installed; all of them share one [`store`].

pub mod acme;
pub mod addresses;
pub mod adoptions;
pub mod api;
pub mod audit;
pub mod authority;
pub mod backup;
pub mod campaigns;
pub mod certificates;
pub mod clock;
pub mod controller;
pub mod doctor;
pub mod enrol;
pub mod events;
pub mod fleet;
pub mod https;
pub mod images;
pub mod intakes;
pub mod intent;
pub mod oidc;
pub mod overdue;
pub mod passwords;
mod replacements;
pub mod restored;
pub mod rotations;
pub mod samples;
pub mod seal_key;
pub mod ssh;
pub mod steps;
pub mod store;
pub mod succession;
pub mod telemetry;
pub mod totp;
pub mod verbs;
pub mod webhooks;
pub mod workflows;
