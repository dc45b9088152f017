//! What taking over a changed configuration came to.

use std::fmt;

/// The settings that differ from those in use, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// In use from now on.
    pub now: Vec<&'static str>,
    /// What a process begins with and keeps: in use after a restart.
    pub at_restart: Vec<&'static str>,
}

impl Taken {
    /// Takes a setting over, when it is another than the one in use; whether it is.
    pub fn take<T: PartialEq + Clone>(&mut self, name: &'static str, used: &mut T, fresh: &T) -> bool {
        let differs = used != fresh;
        if differs {
            used.clone_from(fresh);
            self.now.push(name);
        }
        differs
    }

    /// Notes a setting that is not taken over, when it is another than the one in use.
    pub fn keep<T: PartialEq>(&mut self, name: &'static str, used: &T, fresh: &T) {
        if used != fresh {
            self.at_restart.push(name);
        }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.now.as_slice() {
            [] if self.at_restart.is_empty() => return f.write_str("nothing has changed"),
            [] => {}
            now => write!(f, "taken over: {}", now.join(", "))?,
        }
        if !self.at_restart.is_empty() {
            let gap = if self.now.is_empty() { "" } else { "; " };
            write!(f, "{gap}restart to take over: {}", self.at_restart.join(", "))?;
        }
        Ok(())
    }
}

/// An error with its causes in one line: a parser's drawing of the place is left out, the line's
/// number stays.
pub(crate) fn in_one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let drawn = |line: &&str| line.split_once('|').is_some_and(|(before, _)| before.trim().parse::<u32>().is_ok());
    let blank = |line: &&str| line.trim_start_matches([' ', '|', '^', '-']).is_empty();
    text.lines().filter(|line| !drawn(line) && !blank(line)).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_is_taken_over_is_in_use_and_what_is_not_is_named_again_and_again() {
        let (mut limit, listen) = (1, "a");
        for said in ["taken over: limit; restart to take over: listen", "restart to take over: listen"] {
            let mut taken = Taken::default();
            taken.take("limit", &mut limit, &2);
            taken.keep("listen", &listen, &"b");
            assert_eq!((taken.to_string().as_str(), limit), (said, 2));
        }
        assert_eq!(Taken::default().to_string(), "nothing has changed");
    }

    #[test]
    fn an_error_of_several_lines_becomes_one_that_names_the_line() {
        let error = toml::from_str::<toml::Table>("a = 1\nb = = 2\n").context("agent.toml is not usable").unwrap_err();
        expect!["agent.toml is not usable: TOML parse error at line 2, column 5: extra `=`, expected nothing"]
            .assert_eq(&in_one_line(&error));
    }
}
