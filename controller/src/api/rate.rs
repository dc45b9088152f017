//! How often one token may ask, so that a script gone wild leaves room for everybody else.
//!
//! Invariant: what is kept is about tokens that are valid, and about no others.

use std::{
    num::NonZeroU32,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock as _};
use uuid::Uuid;

use super::{Caller, Error};

/// Requests of one token each second, when nothing else is configured.
pub const USUAL: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

/// So many seconds' requests may come at once.
const BURST: u32 = 5;

/// So many tokens are known at once before those that were quiet are forgotten.
const KNOWN: usize = 1000;

/// How often every token may ask; clones are the same.
#[derive(Clone)]
pub struct Rate(Arc<RwLock<Limit>>);

struct Limit {
    per_second: NonZeroU32,
    limiter: DefaultKeyedRateLimiter<Uuid>,
}

impl std::fmt::Debug for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rate").field(&self.0.read().unwrap_or_else(PoisonError::into_inner).per_second).finish()
    }
}

impl Rate {
    /// So many requests each second, five seconds' worth at once.
    pub fn new(per_second: NonZeroU32) -> Self {
        Self(Arc::new(RwLock::new(Limit::new(per_second))))
    }

    /// Another rate from now on.
    pub fn change(&self, per_second: NonZeroU32) {
        let mut limit = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if limit.per_second != per_second {
            *limit = Limit::new(per_second);
        }
    }

    /// Counts a request of this token; how long to wait when there were too many.
    fn count(&self, token: Uuid) -> Result<(), Duration> {
        let limit = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if limit.limiter.len() > KNOWN {
            limit.limiter.retain_recent();
        }
        limit.limiter.check_key(&token).map_err(|until| until.wait_time_from(limit.limiter.clock().now()))
    }
}

impl Limit {
    fn new(per_second: NonZeroU32) -> Self {
        let burst = per_second.saturating_mul(const { NonZeroU32::new(BURST).expect("not zero") });
        Self { per_second, limiter: RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)) }
    }
}

/// Lets a request through unless its token has asked too often.
pub(super) async fn limited(State(rate): State<Rate>, request: Request, next: Next) -> Response {
    let counted = request.extensions().get::<Caller>().map_or(Ok(()), |caller| rate.count(caller.token));
    match counted {
        Ok(()) => next.run(request).await,
        Err(wait) => Error::too_often(wait).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_its_own_rate_and_learns_how_long_to_wait() {
        let rate = Rate::new(NonZeroU32::MIN);
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        for _ in 0..5 {
            assert_eq!(rate.count(one), Ok(()));
        }
        let wait = rate.count(one).expect_err("it has asked too often");
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(rate.count(other), Ok(()));
        rate.change(NonZeroU32::new(1000).expect("not zero"));
        assert_eq!(rate.count(one), Ok(()));
    }

    #[test]
    fn tokens_that_were_quiet_are_forgotten() {
        let rate = Rate::new(NonZeroU32::MAX);
        for _ in 0..10 * KNOWN {
            assert_eq!(rate.count(Uuid::now_v7()), Ok(()));
        }
        let known = rate.0.read().unwrap_or_else(PoisonError::into_inner).limiter.len();
        assert!(known <= 2 * KNOWN, "{known}");
    }
}
