//! Reading many resources by their links (DSP0266 §"Resource collections", §"$expand").
//!
//! Invariants:
//! - A walk ends: each link is followed once, pages and members are bounded, and so is its time.
//! - What all its resources weigh together is bounded: whoever asks may keep them all.
//! - What cannot be read is skipped and reported; three in a row that a BMC does not answer for
//!   end the walk, because then it is the BMC that is ill.

use std::collections::HashSet;

use tokio::time::Instant;

use crate::{
    bmc::BmcError,
    told::{MAX_ITEMS, Skipped},
};

use super::{
    fault,
    http::Http,
    link::Link,
    resource::{Node, Resource, Weight},
};

/// The most pages of one collection.
const MAX_PAGES: usize = 64;

/// The most resources of one walk that are asked for: at 100 ms each, half the bound of a call.
const MAX_READS: usize = 1500;

/// What the resources of one walk may weigh. A rack server of today has 2 MiB and 60,000 values.
const MAX_WEIGHT: Weight = Weight { bytes: 16 << 20, values: 250_000 };

/// How many in a row may stay unanswered.
const MAX_SILENT: u32 = 3;

/// One walk over a BMC's resources.
pub struct Walk<'a> {
    http: &'a Http,
    expands: bool,
    seen: HashSet<String>,
    reads: usize,
    weight: Weight,
    /// Whether it has reported that it reads no more.
    is_over: bool,
    end: Instant,
    silent: u32,
    /// Whether it ends with the first resource that there is and that is not shown to us, or that
    /// there is no room for.
    pub is_strict: bool,
    /// What was not read.
    pub skipped: Vec<Skipped>,
}

impl<'a> Walk<'a> {
    /// Begins; `expands` when the service knows `$expand`.
    pub fn new(http: &'a Http, expands: bool) -> Self {
        let end = Instant::now() + http.bounds().call;
        Self {
            http,
            expands,
            seen: HashSet::new(),
            reads: 0,
            weight: Weight::default(),
            is_over: false,
            end,
            silent: 0,
            is_strict: false,
            skipped: Vec::new(),
        }
    }

    /// Reports something that was not understood.
    pub fn skip(&mut self, place: &Link, why: impl ToString) {
        if self.skipped.len() < MAX_ITEMS {
            let why = crate::told::text(&why.to_string()).unwrap_or_default();
            let place = crate::told::text(place.as_str()).unwrap_or_default();
            self.skipped.push(Skipped { place, why });
        }
    }

    /// The resource, unless it was read before or cannot be read.
    pub async fn read(&mut self, link: &Link) -> Result<Option<Resource>, BmcError> {
        if !self.is_new(link) {
            return Ok(None);
        }
        if !self.has_room(link) {
            let why = || Err(fault::malformed(format!("{link}: it has too many resources")));
            return if self.is_strict { why() } else { Ok(None) };
        }
        if Instant::now() >= self.end {
            return Err(fault::unreachable(format!("{link}: there was no time left for it")));
        }
        self.reads += 1;
        match self.http.get(link).await {
            Ok(resource) => {
                self.silent = 0;
                self.weigh(&resource);
                Ok(Some(resource))
            }
            Err(error) => self.give_up(link, error).map(|()| None),
        }
    }

    /// The resource that a member refers to, if it does.
    pub async fn follow(&mut self, node: Node<'_>, name: &str) -> Result<Option<Resource>, BmcError> {
        match node.link(name) {
            Some(link) => self.read(&link).await,
            None => Ok(None),
        }
    }

    /// The members of the collection that a member refers to, or of the array that it is.
    pub async fn members_at(&mut self, node: Node<'_>, name: &str) -> Result<Vec<Resource>, BmcError> {
        if let Some(link) = node.link(name) {
            return self.members(&link).await;
        }
        let mut members = Vec::new();
        for link in node.links(name) {
            keep(&mut members, self.read(&link).await?);
        }
        Ok(members)
    }

    /// The members of a collection, in its order.
    pub async fn members(&mut self, collection: &Link) -> Result<Vec<Resource>, BmcError> {
        let mut members = Vec::new();
        let mut next = Some(collection.clone());
        for _ in 0..MAX_PAGES {
            let Some(link) = next.take() else { break };
            let Some(page) = self.page(&link, link == *collection).await? else { break };
            for (index, member) in page.node().items("Members").enumerate() {
                if members.len() >= MAX_ITEMS {
                    break;
                }
                match member.target() {
                    Some(link) if member.is_expanded() => {
                        if self.is_new(&link) {
                            members.extend(member.0.and_then(|value| Resource::new(link, None, value.clone()).ok()));
                        }
                    }
                    Some(link) => members.extend(self.read(&link).await?),
                    None => self.skip(&link, format!("its member {index} is no link")),
                }
            }
            next = page.node().word("Members@odata.nextLink").and_then(Link::parse);
        }
        Ok(members)
    }

    async fn page(&mut self, link: &Link, is_first: bool) -> Result<Option<Resource>, BmcError> {
        if self.expands && is_first && self.has_room(link) && self.is_new(link) {
            // A service may announce it and not do it for every collection, or too much of it.
            match self.http.get(&link.with_query("$expand=.($levels=1)")).await {
                Ok(page) => {
                    self.weigh(&page);
                    return Ok(Some(page));
                }
                Err(error @ (BmcError::Changed(_) | BmcError::Denied(_))) => return Err(error),
                Err(_) => drop(self.seen.remove(key(link))),
            }
        }
        self.read(link).await
    }

    /// Whether there may be more than was read. That there is not is reported once.
    fn has_room(&mut self, link: &Link) -> bool {
        let Weight { bytes, values } = self.weight;
        let has_room = self.reads < MAX_READS && bytes < MAX_WEIGHT.bytes && values < MAX_WEIGHT.values;
        if !has_room && !self.is_over {
            self.is_over = true;
            self.skip(link, "this and what follows: it has too many resources");
        }
        has_room
    }

    fn weigh(&mut self, resource: &Resource) {
        self.weight.bytes += resource.weight.bytes;
        self.weight.values += resource.weight.values;
    }

    fn is_new(&mut self, link: &Link) -> bool {
        self.seen.insert(key(link).to_owned())
    }

    fn give_up(&mut self, link: &Link, error: BmcError) -> Result<(), BmcError> {
        match error {
            BmcError::Changed(_) => return Err(error),
            BmcError::Unreachable(_) | BmcError::Denied(_) => self.silent += 1,
            _ => self.silent = 0,
        }
        if self.silent >= MAX_SILENT || (self.is_strict && self.silent > 0) {
            return Err(error);
        }
        self.skip(link, error);
        Ok(())
    }
}

/// Adds to what is kept of a BMC, until there is too much of it.
pub fn keep<T>(kept: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    let room = MAX_ITEMS.saturating_sub(kept.len());
    kept.extend(more.into_iter().take(room));
}

/// Services write the same link with a slash at its end and without.
fn key(link: &Link) -> &str {
    link.as_str().trim_end_matches('/')
}
