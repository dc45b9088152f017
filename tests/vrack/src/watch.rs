//! Ends the whole run when one fact hangs: a gate that waits for ever says nothing.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use crate::run;

/// Far longer than any fact takes.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Waits for the end of a fact, which is when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn over(fact: &str) -> Self {
        Self::with(fact, LIMIT, |fact| {
            println!("test {fact} ... FAILED: it hangs, {LIMIT:?} after it began");
            println!("what runs on the machine:\n{}", run::quiet("ps", &["-eLo", "pid,tid,stat,wchan:32,etimes,args"]));
            println!("0 passed, 1 failed");
            std::process::exit(1);
        })
    }

    fn with(fact: &str, limit: Duration, hangs: impl FnOnce(&str) + Send + 'static) -> Self {
        let ((over, ended), fact) = (channel(), fact.to_owned());
        let thread = std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                hangs(&fact);
            }
        });
        Self { over: Some(over), thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked said so on standard error.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn only_a_fact_that_hangs_is_told() {
        let (told, hung) = mpsc::channel();
        let again = told.clone();
        drop(Watch::with("quick", LIMIT, move |fact| again.send(fact.to_owned()).unwrap()));
        let watch = Watch::with("slow", Duration::ZERO, move |fact| told.send(fact.to_owned()).unwrap());
        assert_eq!(hung.recv().unwrap(), "slow");
        drop(watch);
        assert!(hung.recv().is_err());
    }
}
