//! Waiting for a state, with a deadline. The only place of the stories that sleeps.

use std::time::{Duration, Instant};

/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What `look` gives once it gives something; until then it says what it sees instead. At the
/// deadline, the last it saw is what the failure says.
pub async fn until<T>(wanted: &str, patience: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + patience;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > end => panic!("not within {patience:?}: {wanted}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
