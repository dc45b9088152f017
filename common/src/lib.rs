//! What every Rackhand binary must agree on. No IO, no tokio.
//!
//! Read in this order: [`id`], [`machine`] and [`hardware`] are the vocabulary; [`intent`] is what the
//! controller wants of a rack and [`event`] what happened there; [`wire`] carries both
//! between controller, agent and boot; [`bmc`] is how BMCs are reached and what they tell,
//! [`firmware`] how they are updated,
//! [`health`] what is made of all that, and [`explanation`] of all that is known of a machine;
//! [`channel`] is spoken between boot and the installer;
//! [`image`] describes what the installer writes, [`commission`] what it tests a machine with; [`pki`] says who may be whom; [`seal`] keeps
//! secrets unreadable on disk; [`audit`] chains what was changed; [`places`] bounds connections; [`finding`] is how a program tells what it found when it
//! examined itself; [`life`] says which machines are nobody's, and [`replacement`] what a technician does to one of them; [`terminal`] tells what is typed to a machine from what is meant for us.

pub mod audit;
pub mod bmc;
pub mod channel;
pub mod commission;
pub mod erasure;
pub mod event;
pub mod explanation;
pub mod finding;
pub mod firmware;
pub mod hardware;
pub mod health;
pub mod id;
pub mod image;
pub mod intent;
pub mod life;
pub mod machine;
pub mod pki;
pub mod places;
pub mod replacement;
pub mod seal;
pub mod terminal;
pub mod time;
pub mod wire;
