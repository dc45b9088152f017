//! One-time codes that follow the clock (TOTP, RFC 6238), as the second factor of a login: SHA-1,
//! six digits, a new one every 30 seconds.
//!
//! Invariant: a code is taken once. The time step of the newest that was taken is kept with the
//! secret, and none of that step or before it is taken again.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use jiff::Timestamp;

/// Seconds of one step.
const STEP: i64 = 30;

/// Steps by which its owner's clock may be off, either way.
const OFF: i64 = 1;

/// A fresh secret: as long as SHA-1's output, as RFC 4226 asks for.
pub fn fresh_secret() -> Vec<u8> {
    let mut secret = [0u8; 20];
    rand::fill(&mut secret);
    secret.into()
}

/// The step of a code that is right at `now` and later than `taken`; `None` when it is not right.
pub fn check(secret: &[u8], now: Timestamp, taken: i64, code: &str) -> Option<i64> {
    let present = now.as_second() / STEP;
    (present - OFF..=present + OFF)
        .filter(|step| *step > taken)
        .find(|step| verify_slices_are_equal(code_at(secret, *step).as_bytes(), code.as_bytes()).is_ok())
}

/// What an authenticator is told, as a picture or to be typed: the address that it reads.
pub fn address(name: &str, secret: &[u8]) -> String {
    format!("otpauth://totp/Rackhand:{name}?secret={}&issuer=Rackhand", base32(secret))
}

/// The code of a step.
pub(crate) fn code_at(secret: &[u8], step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let sum = hmac::sign(&key, &step.to_be_bytes());
    let sum = sum.as_ref();
    let at = usize::from(sum[19] & 15);
    let four = u32::from_be_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]]) & 0x7fff_ffff;
    format!("{:06}", four % 1_000_000)
}

/// RFC 4648's base 32, of whole groups of five bytes.
pub fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        (0..8).rev().map(|digit| char::from(ALPHABET[(bits >> (5 * digit)) as usize & 31])).collect::<String>()
    };
    bytes.chunks_exact(5).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"12345678901234567890";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// RFC 6238, appendix B: the last six of its eight digits.
    #[test]
    fn codes_are_those_of_the_standard() {
        let told = [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924")];
        for (seconds, code) in told.into_iter().chain([(2000000000, "279037"), (20000000000, "353130")]) {
            assert_eq!(code_at(SECRET, seconds / STEP), code);
            assert_eq!(check(SECRET, at(seconds), 0, code), Some(seconds / STEP));
        }
    }

    #[test]
    fn a_code_is_taken_once_and_while_a_clock_may_be_off() {
        let code = code_at(SECRET, 100);
        let check = |seconds, taken| check(SECRET, at(seconds), taken, &code);
        assert_eq!(check(100 * STEP, 99), Some(100));
        assert_eq!(check(99 * STEP, 0), Some(100));
        assert_eq!(check(102 * STEP - 1, 0), Some(100));
        assert_eq!(check(102 * STEP, 0), None);
        assert_eq!(check(100 * STEP, 100), None, "it was taken");
        assert_eq!(check(100 * STEP, 101), None, "a later one was taken");
    }

    #[test]
    fn an_authenticator_reads_the_secret() {
        assert_eq!(base32(SECRET), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        assert_eq!(
            address("ada", SECRET),
            "otpauth://totp/Rackhand:ada?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Rackhand"
        );
    }
}
