//! What a program finds when it examines its own installation: judged here, read and printed by
//! the shells around it.

use std::{fmt, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// It works, and soon or sometimes will not.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: a word or two, always the same.
    pub subject: &'static str,
    /// What was found.
    pub found: String,
    /// What to do; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// Everything that was looked at, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// It is as it should be.
    pub fn good(&mut self, subject: &'static str, found: impl fmt::Display) {
        self.add(Severity::Good, subject, found, "");
    }

    /// It needs a look.
    pub fn warning(&mut self, subject: &'static str, found: impl fmt::Display, advice: impl fmt::Display) {
        self.add(Severity::Warning, subject, found, advice);
    }

    /// It does not work.
    pub fn error(&mut self, subject: &'static str, found: impl fmt::Display, advice: impl fmt::Display) {
        self.add(Severity::Error, subject, found, advice);
    }

    fn add(&mut self, severity: Severity, subject: &'static str, found: impl fmt::Display, advice: impl fmt::Display) {
        self.0.push(Finding { severity, subject, found: found.to_string(), advice: advice.to_string() });
    }

    /// The worst of them, as a program's exit status: 0, 1 or 2.
    pub fn status(&self) -> u8 {
        match self.0.iter().map(|finding| finding.severity).max() {
            None | Some(Severity::Good) => 0,
            Some(Severity::Warning) => 1,
            Some(Severity::Error) => 2,
        }
    }

    /// A file or directory that is for its owner alone. `mode` has the permission bits;
    /// `owner` is the user it has, `expected` the one it should have.
    pub fn private(&mut self, path: &str, mode: u32, owner: u32, expected: u32) {
        if mode & 0o077 != 0 {
            let wanted = if mode & 0o100 != 0 { "0700" } else { "0600" };
            self.error(
                "files",
                format_args!("{path} has mode {:04o}: others can get at it", mode & 0o7777),
                format_args!("chmod {wanted} {path}"),
            );
        }
        if owner != expected {
            self.error(
                "files",
                format_args!("{path} belongs to user {owner}, its directory to {expected}: the service cannot use it"),
                format_args!("chown {expected} {path}"),
            );
        }
    }

    /// Space on the file system of `path`, in bytes.
    pub fn space(&mut self, path: &str, free: u64, total: u64) {
        let found = format!("{path}: {} MiB of {} MiB are free", free >> 20, total >> 20);
        let advice = "make room, or put it on a larger file system";
        if free < 256 << 20 {
            self.error("space", found, advice);
        } else if free < 2 << 30 || free < total / 20 {
            self.warning("space", found, advice);
        } else {
            self.good("space", found);
        }
    }

    /// A certificate's time. `renewed` is how long before its end it is made anew.
    pub fn certificate(&mut self, whose: &str, now: Timestamp, until: Timestamp, renewed: Duration, advice: &str) {
        let left = now.duration_until(until);
        let renewed = SignedDuration::try_from(renewed).unwrap_or(SignedDuration::MAX);
        let until = until.strftime("%Y-%m-%d %H:%M UTC");
        if left <= SignedDuration::ZERO {
            self.error("certificate", format_args!("{whose} ended on {until}"), advice);
        } else if left < renewed / 2 {
            self.warning("certificate", format_args!("{whose} ends on {until} and was not renewed in time"), advice);
        } else {
            self.good("certificate", format_args!("{whose} ends on {until}"));
        }
    }

    /// The clock, beside the latest time that was written down here.
    pub fn clock(&mut self, now: Timestamp, written: Timestamp) {
        let behind = now.duration_until(written);
        if behind > SignedDuration::from_mins(5) {
            let found = format!(
                "it is {} by this clock, and {} was written down before",
                now.strftime("%Y-%m-%d %H:%M:%S UTC"),
                written.strftime("%Y-%m-%d %H:%M:%S UTC")
            );
            self.error("clock", found, "set the clock, and keep it set: systemd-timesyncd or chrony");
        } else {
            self.good("clock", now.strftime("%Y-%m-%d %H:%M:%S UTC"));
        }
    }

    /// Files a process may have open, as `/proc/PID/limits` tells it.
    pub fn open_files(&mut self, who: &str, limits: &str) {
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|rest| rest.split_whitespace().next());
        match soft.map(str::parse::<u64>) {
            Some(Ok(files)) if files < 4096 => self.warning(
                "limits",
                format_args!("{who} may have {files} files open"),
                "start it by its systemd unit, which allows 65536",
            ),
            Some(Ok(files)) => self.good("limits", format_args!("{who} may have {files} files open")),
            // "unlimited".
            _ => self.good("limits", format_args!("{who} may have any number of files open")),
        }
    }
}

/// A line each, worst ones marked, and what to do below them.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { severity, subject, found, advice } in &self.0 {
            let mark = match severity {
                Severity::Good => "ok     ",
                Severity::Warning => "WARNING",
                Severity::Error => "ERROR  ",
            };
            writeln!(f, "{mark}  {subject:<12} {found}")?;
            if !advice.is_empty() {
                writeln!(f, "         {:<12} -> {advice}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_found_is_judged_and_says_what_to_do() {
        let mut findings = Findings::default();
        assert_eq!(findings.status(), 0);
        findings.space("/a", 100 << 30, 200 << 30);
        findings.clock(at(1000), at(900));
        findings.certificate("the agent's", at(0), at(86_400), Duration::from_secs(86_400), "look");
        findings.open_files("the agent", "Limit  Soft\nMax open files            65536                524288\n");
        assert_eq!(findings.status(), 0);
        findings.space("/b", 1 << 30, 200 << 30);
        findings.open_files("the agent", "Max open files            1024                524288               files\n");
        findings.certificate("the agent's", at(0), at(40_000), Duration::from_secs(86_400), "look");
        assert_eq!(findings.status(), 1);
        findings.space("/c", 1 << 20, 200 << 30);
        findings.clock(at(1000), at(9000));
        findings.certificate("the agent's", at(9), at(8), Duration::from_secs(86_400), "enrol again");
        findings.private("/d/key", 0o640, 5, 6);
        findings.private("/d", 0o700, 6, 6);
        assert_eq!(findings.status(), 2);
        expect![[r#"
            ok       space        /a: 102400 MiB of 204800 MiB are free
            ok       clock        1970-01-01 00:16:40 UTC
            ok       certificate  the agent's ends on 1970-01-02 00:00 UTC
            ok       limits       the agent may have 65536 files open
            WARNING  space        /b: 1024 MiB of 204800 MiB are free
                                  -> make room, or put it on a larger file system
            WARNING  limits       the agent may have 1024 files open
                                  -> start it by its systemd unit, which allows 65536
            WARNING  certificate  the agent's ends on 1970-01-01 11:06 UTC and was not renewed in time
                                  -> look
            ERROR    space        /c: 1 MiB of 204800 MiB are free
                                  -> make room, or put it on a larger file system
            ERROR    clock        it is 1970-01-01 00:16:40 UTC by this clock, and 1970-01-01 02:30:00 UTC was written down before
                                  -> set the clock, and keep it set: systemd-timesyncd or chrony
            ERROR    certificate  the agent's ended on 1970-01-01 00:00 UTC
                                  -> enrol again
            ERROR    files        /d/key has mode 0640: others can get at it
                                  -> chmod 0600 /d/key
            ERROR    files        /d/key belongs to user 5, its directory to 6: the service cannot use it
                                  -> chown 6 /d/key
        "#]]
        .assert_eq(&findings.to_string());
    }
}
