//! How a machine's BMC comes by a password that only we know: by a login, or in-band where it lets us in no
//! more.
//!
//! Invariants:
//! - In a release the login is tried first, and what a tenant's system may have changed is regained after.
//! - What an installer says it has set proves nothing: the BMC is ours when its rack's agent has logged in.
//! - Each way is tried once in a run: a BMC that takes neither is somebody's to look at.

/// What a run has come to with its machine's BMC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the BMC was logged in to with a password that was made in this run.
    pub is_ours: bool,
    /// The latest rotation that was begun in this run.
    pub rotation: Option<Rotation>,
    /// What the machine's installer said of setting it in-band in this try.
    pub in_band: Option<Result<(), String>>,
    /// Whether the agent was asked to prove that.
    pub is_proving: bool,
}

/// How a rotation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It waits for this.
    UnderWay(String),
    /// It was given up, for this reason.
    Failed(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the BMC has its password.
    Done,
    /// Have the agent log in and set another password.
    Rotate,
    /// Have the machine's installer set user and password in-band.
    InBand,
    /// Have the agent log in with what the installer has set.
    Prove,
    /// Wait for the agent, which is at this.
    Wait(String),
    /// It cannot be done, for this reason.
    Fail(String),
}

/// What a run does next; one that `tries_login` has not been told that no login works.
pub fn next(seen: &Seen, tries_login: bool) -> Next {
    let kept = |reason: &str| format!("its BMC was not given another password: {reason}");
    match (seen, &seen.rotation) {
        (Seen { is_ours: true, .. }, _) => Next::Done,
        (_, Some(Rotation::UnderWay(detail))) => Next::Wait(detail.clone()),
        (Seen { is_proving: true, .. }, Some(Rotation::Failed(reason))) => Next::Fail(format!(
            "its installer set the BMC's password in-band, and the BMC does not let its node in with it: {reason}"
        )),
        // An operator has said how it is reached in the meantime.
        (Seen { is_proving: true, .. }, None) => {
            Next::Fail("how its BMC is reached was changed while it was being regained".to_owned())
        }
        (Seen { in_band: Some(Ok(())), .. }, _) => Next::Prove,
        (Seen { in_band: Some(Err(in_band)), .. }, Some(Rotation::Failed(reason))) => {
            Next::Fail(format!("{}; nor was it regained in-band: {in_band}", kept(reason)))
        }
        (Seen { in_band: Some(Err(in_band)), .. }, None) => {
            Next::Fail(format!("its BMC was not regained in-band: {in_band}"))
        }
        (Seen { in_band: None, .. }, None) if tries_login => Next::Rotate,
        (Seen { in_band: None, .. }, _) => Next::InBand,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Option<Rotation> {
        Some(Rotation::Failed("denied".into()))
    }

    #[test]
    fn a_release_logs_in_first_and_regains_what_does_not_let_it_in() {
        let mut seen = Seen::default();
        assert_eq!(next(&seen, true), Next::Rotate);
        seen.rotation = Some(Rotation::UnderWay("asked for".into()));
        assert_eq!(next(&seen, true), Next::Wait("asked for".into()));
        seen.rotation = failed();
        assert_eq!(next(&seen, true), Next::InBand);
        seen.in_band = Some(Ok(()));
        assert_eq!(next(&seen, true), Next::Prove);
        seen.is_proving = true;
        seen.rotation = Some(Rotation::UnderWay("asked for".into()));
        assert_eq!(next(&seen, true), Next::Wait("asked for".into()));
        seen.is_ours = true;
        assert_eq!(next(&seen, true), Next::Done);
    }

    #[test]
    fn whoever_asks_for_a_bmc_to_be_regained_has_no_login_tried() {
        assert_eq!(next(&Seen::default(), false), Next::InBand);
    }

    #[test]
    fn what_fails_is_told_with_both_reasons_and_not_tried_again() {
        let in_band = Some(Err("no place left".to_owned()));
        let seen = Seen { rotation: failed(), in_band: in_band.clone(), ..Seen::default() };
        let Next::Fail(reason) = next(&seen, true) else { panic!("{seen:?}") };
        assert_eq!(
            reason,
            "its BMC was not given another password: denied; nor was it regained in-band: no place left"
        );
        let seen = Seen { in_band, ..Seen::default() };
        assert!(matches!(next(&seen, false), Next::Fail(reason) if reason.contains("no place left")));
        let seen = Seen { rotation: failed(), in_band: Some(Ok(())), is_proving: true, ..Seen::default() };
        for tries_login in [true, false] {
            assert!(matches!(next(&seen, tries_login), Next::Fail(reason) if reason.contains("denied")));
        }
    }

    #[test]
    fn every_run_comes_to_an_end_whatever_comes_of_each_way() {
        for outcomes in 0..8u8 {
            for tries_login in [true, false] {
                let comes = |bit: u8| outcomes & 1 << bit != 0;
                let (mut seen, mut steps) = (Seen::default(), Vec::new());
                loop {
                    let step = next(&seen, tries_login);
                    steps.push(step.clone());
                    assert!(steps.len() < 8, "{steps:?}");
                    match step {
                        Next::Done | Next::Fail(_) => break,
                        Next::Rotate => {
                            seen.rotation = failed().filter(|_| !comes(0));
                            seen.is_ours = comes(0);
                        }
                        Next::InBand => seen.in_band = Some(if comes(1) { Ok(()) } else { Err("no".into()) }),
                        Next::Prove => {
                            seen.is_proving = true;
                            seen.rotation = failed().filter(|_| !comes(2));
                            seen.is_ours = comes(2);
                        }
                        Next::Wait(_) => unreachable!("nothing is under way"),
                    }
                }
                let is_ours = tries_login && comes(0) || comes(1) && comes(2);
                assert_eq!(steps.last() == Some(&Next::Done), is_ours, "{steps:?}");
                let times = |of: &Next| steps.iter().filter(|step| *step == of).count();
                assert!([Next::Rotate, Next::InBand, Next::Prove].iter().all(|way| times(way) <= 1), "{steps:?}");
            }
        }
    }
}
