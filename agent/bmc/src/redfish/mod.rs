//! Redfish (DSP0266, schemas of DSP0268): a BMC asked over HTTP and told in [`told`](crate::told).
//!
//! Read in this order: [`link`] and [`resource`] say what a resource is, [`fault`] what an error
//! is, [`pace`] and [`pin`] how long and whom we believe, [`http`] is the shell around them.
//! [`walk`] and [`service`] find things by their links (DSP0266 §"Resource tree"); each other file
//! is one noun of DSP0268, its pure reading first and the requests around it below.
//!
//! Invariants:
//! - What is used is found by links from `/redfish/v1/`; a standard place is only tried where a
//!   service leaves a link or an action's target out.
//! - Every reader takes any JSON: a member of the wrong type is absent, a part that cannot be read
//!   is skipped and reported. `Resource::parse` and the functions on `Node` are made to be fuzzed.
//! - What is changed is set, not toggled, and read back where services are known to lie.
//! - One request at a time, one session, closed by [`Redfish::close`].
//! - `Debug` shows neither password nor token, and no error repeats a password.
//!
//! It does not poll or subscribe by itself, and keeps nothing but where things are.

pub mod accounts;
pub mod bios;
pub mod boot;
pub mod certificates;
pub mod events;
pub mod fault;
pub mod http;
pub mod identity;
pub mod inventory;
pub mod lan;
pub mod link;
pub mod log;
pub mod media;
pub mod pace;
pub mod pin;
pub mod power;
pub mod resource;
pub mod secure_boot;
pub mod sensors;
pub mod tree;
pub mod update;
pub mod walk;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::timeout};
use uuid::Uuid;

use rackhand_common::machine::Power;

use crate::{
    bmc::{Answer, Bmc, BmcError, Credentials, Logins},
    told::{
        Account, Accounts, Bios, Boot, BootOverride, Identity, Lan, Log, Parts, Sensors, baseline::Attribute, text,
    },
};

pub use http::Bounds;
pub use pin::Fingerprint;
pub use tree::Which;

use http::Http;
use resource::{Node, Resource};
use tree::Service;
use walk::Walk;

/// How a BMC is reached.
#[derive(Clone, Debug)]
pub struct Target {
    /// `https://` and its address; `http://` only where nobody else listens: in a lab.
    pub url: String,
    /// Who logs in.
    pub credentials: Credentials,
    /// The certificate it had when it was first met; `None` believes the one it has now.
    pub fingerprint: Option<Fingerprint>,
    /// Which of its systems is meant.
    pub system: Which,
    /// How long things may take.
    pub bounds: Bounds,
}

/// What a service says of itself to anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// Who made it.
    pub vendor: Option<String>,
    /// What it is called.
    pub product: Option<String>,
    /// The service's UUID: often that of the BMC, and not of the machine.
    pub uuid: Option<Uuid>,
}

/// What a service root says; `None` when it is no service root.
fn introduction(root: Node<'_>) -> Option<Introduction> {
    let is_root = root.word("RedfishVersion").is_some() || root.link("Systems").is_some();
    // Whoever leaves the vendor out has at least an extension under its name.
    let extension = || root.at("Oem").members().next().and_then(|(name, _)| text(name));
    is_root.then(|| Introduction {
        vendor: root.text("Vendor").or_else(extension),
        product: root.text("Product"),
        uuid: root.word("UUID").and_then(identity::uuid),
    })
}

/// A BMC that speaks Redfish.
#[derive(Debug)]
pub struct Redfish {
    http: Http,
    which: Which,
    service: Mutex<Option<Arc<Service>>>,
}

impl Redfish {
    /// Asks nothing yet.
    pub fn new(target: Target) -> Result<Self, BmcError> {
        let Target { url, credentials, fingerprint, system, bounds } = target;
        let http = Http::new(&url, credentials, fingerprint, bounds)?;
        Ok(Self { http, which: system, service: Mutex::new(None) })
    }

    /// Asked and told of every login.
    pub fn counted(self, logins: Arc<dyn Logins>) -> Self {
        Self { http: self.http.counted(logins), ..self }
    }

    /// The certificate that is believed: given, or the one that was met first.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.http.fingerprint()
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        self.http.requests()
    }

    /// Meets the BMC without logging in, and says which certificate it has; `None` over plain
    /// HTTP.
    pub async fn greet(&self) -> Result<Option<Fingerprint>, BmcError> {
        self.http.root().await?;
        Ok(self.fingerprint())
    }

    /// What the service says of itself to anybody (DSP0268 ServiceRoot); an error when it is none.
    pub async fn introduce(&self) -> Result<Introduction, BmcError> {
        let root = self.http.root().await?;
        introduction(root.node()).ok_or_else(|| fault::malformed("no service root of Redfish"))
    }

    /// Ends the session. What is asked afterwards begins another.
    pub async fn close(&self) -> Result<(), BmcError> {
        self.http.close().await
    }

    /// Where things are, found once.
    async fn service(&self) -> Result<Arc<Service>, BmcError> {
        let mut known = self.service.lock().await;
        if let Some(service) = &*known {
            return Ok(service.clone());
        }
        let root = self.http.root().await?;
        self.http.log_in_at(tree::sessions(root.node())).await;
        let mut walk = Walk::new(&self.http, false);
        let service = Arc::new(Service::discover(root, &self.which, &mut walk).await?);
        *known = Some(service.clone());
        Ok(service)
    }

    /// The machine as it is now. When it is no longer where it was, it is looked for again.
    async fn system(&self) -> Result<Resource, BmcError> {
        let service = self.service().await?;
        match self.http.get(&service.system).await {
            Err(BmcError::Unsupported(_)) => {
                *self.service.lock().await = None;
                let service = self.service().await?;
                self.http.get(&service.system).await
            }
            answer => answer,
        }
    }

    fn walk<'a>(&'a self, service: &Service) -> Walk<'a> {
        Walk::new(&self.http, service.expands)
    }

    /// Ends what was asked at the bound of a call.
    fn within<'a, T>(&'a self, asked: impl Future<Output = Result<T, BmcError>> + Send + 'a) -> Answer<'a, T> {
        let bound = self.http.bounds().call;
        Box::pin(async move {
            let late = |_| Err(fault::unreachable(format!("not done within {} s", bound.as_secs_f32())));
            timeout(bound, asked).await.unwrap_or_else(late)
        })
    }
}

impl Bmc for Redfish {
    fn close(&self) -> Answer<'_, ()> {
        Box::pin(Self::close(self))
    }

    fn identity(&self) -> Answer<'_, Identity> {
        self.within(self.read_identity())
    }

    fn power(&self) -> Answer<'_, Power> {
        self.within(self.read_power())
    }

    fn set_power(&self, wanted: Power) -> Answer<'_, ()> {
        self.within(self.reset(wanted))
    }

    fn boot(&self) -> Answer<'_, Boot> {
        self.within(self.read_boot())
    }

    fn set_boot(&self, wanted: BootOverride) -> Answer<'_, ()> {
        self.within(async move { self.override_boot(&wanted).await })
    }

    /// Redfish knows no duration: a light that is on stays on until it is asked to be off.
    fn identify(&self, lit: Duration) -> Answer<'_, ()> {
        self.within(self.set_light(!lit.is_zero()))
    }

    fn sensors(&self) -> Answer<'_, Sensors> {
        self.within(self.read_sensors())
    }

    fn log(&self) -> Answer<'_, Log> {
        self.within(self.read_log())
    }

    /// Without `last`, the log is emptied whatever it holds.
    fn clear_log(&self, last: Option<&str>) -> Answer<'_, ()> {
        let last = last.map(str::to_owned);
        self.within(async move { self.empty_log(last.as_deref()).await })
    }

    fn parts(&self) -> Answer<'_, Parts> {
        self.within(self.read_parts())
    }

    fn accounts(&self) -> Answer<'_, Accounts> {
        self.within(self.read_accounts())
    }

    fn set_password<'a>(&'a self, user: &'a str, password: &'a str) -> Answer<'a, ()> {
        self.within(self.change_password(user, password))
    }

    fn remove_account<'a>(&'a self, account: &'a Account) -> Answer<'a, ()> {
        self.within(self.take_account(account))
    }

    fn change_account<'a>(&'a self, account: &'a Account, wanted: &'a Account) -> Answer<'a, ()> {
        self.within(self.write_account(account, wanted))
    }

    fn lan(&self) -> Answer<'_, Lan> {
        self.within(self.read_lan())
    }

    fn set_lan<'a>(&'a self, wanted: &'a Lan) -> Answer<'a, ()> {
        self.within(self.write_lan(wanted))
    }

    fn bios(&self) -> Answer<'_, Bios> {
        self.within(self.read_bios())
    }

    fn set_bios<'a>(&'a self, wanted: &'a BTreeMap<String, Attribute>) -> Answer<'a, ()> {
        self.within(self.write_bios(wanted))
    }

    fn subscribe<'a>(&'a self, base: &'a str, name: &'a str) -> Answer<'a, ()> {
        self.within(self.take_events(base, name))
    }

    fn unsubscribe<'a>(&'a self, base: &'a str) -> Answer<'a, ()> {
        self.within(self.leave_events(base))
    }
}
