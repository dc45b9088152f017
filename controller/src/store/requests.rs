//! Requests that carry a key of their client's, so that asking again does nothing twice
//! (draft-ietf-httpapi-idempotency-key-header).
//!
//! Invariants:
//! - What a request does is committed together with the mark that it was done: a request that
//!   left no mark did nothing, whenever the controller died.
//! - One that nobody carries out has ended, whether or not that could be written down.
//! - An answer is kept sealed, as some hold secrets that are shown once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    database::{query, query_scalar},
    micros,
};

/// How long a key is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// How many keys are remembered at most; the oldest give way.
const MOST: u32 = 20_000;

/// So many are removed at a time, at most. They are counted when so many came: to count is to read
/// them all.
const SWEPT: u32 = 100;

tokio::task_local! {
    /// The request that is being carried out by this task: every commit marks it as done.
    static CURRENT: KeyedRequest;
}

/// One request with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedRequest {
    /// The token it came with: keys of different tokens are different.
    pub token: Uuid,
    /// The client's key.
    pub key: String,
    /// SHA-256 of method, path and body: the same key must come with the same request.
    pub request: [u8; 32],
}

/// What is known of a request that begins.
#[derive(Debug)]
pub enum Known {
    /// Nothing was done for it: it is the caller's to carry out.
    No(UnderWay),
    /// It is carried out just now.
    Begun,
    /// The key came with another request before.
    Other,
    /// It was answered so.
    Answered(String),
    /// It was carried out, and its answer could not be kept.
    AnswerLost,
}

/// The tokens and keys of the requests that are carried out just now; bounded by the places for
/// connections.
pub(super) type Carried = Arc<Mutex<HashSet<(Uuid, String)>>>;

/// A request is carried out as long as this lives.
#[derive(Debug)]
pub struct UnderWay {
    carried: Carried,
    name: (Uuid, String),
}

impl UnderWay {
    /// `None` when it is under way already.
    fn begin(carried: &Carried, asked: &KeyedRequest) -> Option<Self> {
        let name = (asked.token, asked.key.clone());
        let is_first = carried.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        is_first.then(|| Self { carried: carried.clone(), name })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl KeyedRequest {
    /// Has every commit made by `work` mark this request as done.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// What this task carries out.
    pub(super) fn present() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    fn place(&self) -> String {
        Self::place_of(&self.token, &self.key)
    }

    /// What the answer to the request with this token and key is sealed for.
    pub(super) fn place_of(token: &Uuid, key: &str) -> String {
        format!("answer {token} {key}")
    }
}

impl Store {
    /// Whether it is for the caller to carry out this request; if so it is noted.
    pub async fn begin_request(&self, now: Timestamp, asked: &KeyedRequest) -> Result<Known, StoreError> {
        let under_way = UnderWay::begin(&self.carried, asked);
        let mut tx = self.begin().await?;
        let is_counted = self.keyed.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEPT);
        tx.sweep_requests(now, is_counted).await?;
        let known = query("SELECT request, committed, answer FROM keyed_requests WHERE token = $1 AND key = $2")
            .bind(asked.token.to_string())
            .bind(&asked.key)
            .fetch_optional(&mut tx.inner)
            .await?;
        let digest = hex::encode(asked.request);
        let Some(row) = known else {
            let Some(under_way) = under_way else { return Ok(Known::Begun) };
            query("INSERT INTO keyed_requests (token, key, request, begun) VALUES ($1, $2, $3, $4)")
                .bind(asked.token.to_string())
                .bind(&asked.key)
                .bind(digest)
                .bind(micros(now))
                .execute(&mut tx.inner)
                .await?;
            tx.commit().await?;
            return Ok(Known::No(under_way));
        };
        if row.try_get::<&str, _>("request")? != digest {
            return Ok(Known::Other);
        }
        if let Some(answer) = row.try_get::<Option<&str>, _>("answer")? {
            let answer = self.seal.open(&asked.place(), answer);
            return answer.map(Known::Answered).map_err(|error| StoreError::Damaged("answer", error.into()));
        }
        let Some(under_way) = under_way else { return Ok(Known::Begun) };
        if row.try_get::<i64, _>("committed")? != 0 {
            return Ok(Known::AnswerLost);
        }
        // Whoever began it did nothing and never will.
        let ours = query("UPDATE keyed_requests SET begun = $3 WHERE token = $1 AND key = $2 AND committed = 0")
            .bind(asked.token.to_string())
            .bind(&asked.key)
            .bind(micros(now))
            .execute(&mut tx.inner)
            .await?
            .rows_affected();
        // A commit whose outcome was lost came through after all.
        if ours == 0 {
            return Ok(Known::AnswerLost);
        }
        tx.commit().await?;
        Ok(Known::No(under_way))
    }

    /// Keeps the answer of a request that was carried out; one without an answer worth keeping
    /// is given up, and may be carried out again if nothing was done for it.
    pub async fn end_request(&self, asked: &KeyedRequest, answer: Option<&str>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        query("UPDATE keyed_requests SET answer = $3 WHERE token = $1 AND key = $2")
            .bind(asked.token.to_string())
            .bind(&asked.key)
            .bind(answer.map(|answer| self.seal.seal(&asked.place(), answer)))
            .execute(&mut tx.inner)
            .await?;
        tx.commit().await
    }
}

impl Tx {
    /// Notes that what the present request asks for is committed with this transaction.
    pub(super) async fn mark_request(&mut self) -> Result<(), StoreError> {
        let Some(current) = KeyedRequest::present() else { return Ok(()) };
        query("UPDATE keyed_requests SET committed = 1 WHERE token = $1 AND key = $2")
            .bind(current.token.to_string())
            .bind(current.key)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Removes some of those that are remembered no longer.
    async fn sweep_requests(&mut self, now: Timestamp, is_counted: bool) -> Result<(), StoreError> {
        let newest = "SELECT begun FROM keyed_requests ORDER BY begun DESC LIMIT 1 OFFSET $1";
        let enough: Option<i64> = match is_counted {
            true => query_scalar(newest).bind(MOST).fetch_optional(&mut self.inner).await?,
            false => None,
        };
        let old = micros(now.checked_sub(REMEMBERED).unwrap_or(Timestamp::MIN));
        let swept = "DELETE FROM keyed_requests WHERE (token, key) IN
            (SELECT token, key FROM keyed_requests WHERE begun <= $1 ORDER BY begun LIMIT $2)";
        let until = enough.map_or(old, |enough| enough.max(old));
        query(swept).bind(until).bind(SWEPT).execute(&mut self.inner).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    impl Store {
        /// As after a kill between what was done and the keeping of its answer.
        pub(crate) async fn forget_answers(&self) -> Result<(), StoreError> {
            query("UPDATE keyed_requests SET answer = NULL").execute(&self.pool).await?;
            Ok(())
        }
    }

    async fn asked(bench: &Bench) -> KeyedRequest {
        let mut tx = bench.store.begin().await.unwrap();
        let token = tx.insert_first_token(at(0), "admin", &[1; 32]).await.unwrap();
        tx.commit().await.unwrap();
        KeyedRequest { token, key: "k".into(), request: [7; 32] }
    }

    async fn begin(bench: &Bench, second: i64, asked: &KeyedRequest) -> Known {
        bench.store.begin_request(at(second), asked).await.unwrap()
    }

    /// What is known of it, in a word.
    async fn known(bench: &Bench, second: i64, asked: &KeyedRequest) -> String {
        match begin(bench, second, asked).await {
            Known::No(_) => "no".into(),
            Known::Answered(answer) => format!("answered {answer}"),
            known => format!("{known:?}"),
        }
    }

    async fn a_request_is_carried_out_once_and_its_answer_told_again(on: On) {
        let bench = Bench::new(on).await;
        let asked = asked(&bench).await;
        let Known::No(_under_way) = begin(&bench, 0, &asked).await else { panic!("it came before") };
        assert_eq!(known(&bench, 1, &asked).await, "Begun");
        assert_eq!(known(&bench, 1, &KeyedRequest { request: [8; 32], ..asked.clone() }).await, "Other");
        bench.store.end_request(&asked, Some("RH1.secret")).await.unwrap();
        assert_eq!(known(&bench, 2, &asked).await, "answered RH1.secret");
        let stored: String =
            query_scalar("SELECT answer FROM keyed_requests").fetch_one(&bench.store.pool).await.unwrap();
        assert!(!stored.contains("secret"));
    }

    /// As after a kill, or when the disk was full at the end of it.
    async fn what_ended_without_a_word_is_done_unless_something_of_it_was_committed(on: On) {
        let bench = Bench::new(on).await;
        let asked = asked(&bench).await;
        assert_eq!(known(&bench, 0, &asked).await, "no");
        let undone = asked.clone().scope(async { bench.store.begin().await.unwrap() }).await;
        drop(undone);
        assert_eq!(known(&bench, 1, &asked).await, "no");
        asked.clone().scope(async { bench.store.begin().await.unwrap().commit().await.unwrap() }).await;
        assert_eq!(known(&bench, 2, &asked).await, "AnswerLost");
    }

    async fn a_request_that_was_given_up_is_begun_again(on: On) {
        let bench = Bench::new(on).await;
        let asked = asked(&bench).await;
        assert_eq!(known(&bench, 0, &asked).await, "no");
        bench.store.end_request(&asked, None).await.unwrap();
        assert_eq!(known(&bench, 0, &asked).await, "no");
    }

    async fn keys_are_forgotten_after_a_day_and_when_there_are_too_many(on: On) {
        let bench = Bench::new(on).await;
        let asked = asked(&bench).await;
        assert_eq!(known(&bench, 0, &asked).await, "no");
        bench.store.end_request(&asked, Some("old")).await.unwrap();
        assert_eq!(known(&bench, 86_399, &asked).await, "answered old");
        assert_eq!(known(&bench, 86_401, &asked).await, "no");
        let fill = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)
            INSERT INTO keyed_requests (token, key, request, begun) SELECT $1, 'k' || i, '', $3 + i FROM n";
        query(fill)
            .bind(asked.token.to_string())
            .bind(MOST + 10)
            .bind(micros(at(86_402)))
            .execute(&bench.store.pool)
            .await
            .unwrap();
        for number in 0..SWEPT {
            let another = KeyedRequest { key: format!("another {number}"), ..asked.clone() };
            assert_eq!(known(&bench, 86_500, &another).await, "no");
        }
        let left: u32 = query_scalar("SELECT COUNT(*) FROM keyed_requests").fetch_one(&bench.store.pool).await.unwrap();
        assert!((MOST..=MOST + SWEPT).contains(&left), "{left} are left");
    }

    on_both! {
        a_request_is_carried_out_once_and_its_answer_told_again,
        what_ended_without_a_word_is_done_unless_something_of_it_was_committed,
        a_request_that_was_given_up_is_begun_again,
        keys_are_forgotten_after_a_day_and_when_there_are_too_many,
    }
}
