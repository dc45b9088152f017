//! Keys and codes of a session: RAKP (IPMI 2.0 §13.20–13.25, §13.28–13.32) with cipher suites 3
//! and 17.
//!
//! Invariants:
//! - Codes are compared in constant time.
//! - Nothing here is shown by `Debug`.
//!
//! A BMC key (Kg) of its own is not supported: the user's key is used in its place (§13.33).

use aws_lc_rs::{
    cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey},
    constant_time, hmac,
};
use zeroize::Zeroizing;

use super::packet::Malformed;

/// A cipher suite (table 22-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// 17: RAKP-HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128.
    Sha256,
    /// 3: RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128.
    Sha1,
}

impl Suite {
    /// The authentication, integrity and confidentiality algorithms' numbers.
    pub fn algorithms(self) -> [u8; 3] {
        match self {
            Self::Sha256 => [0x03, 0x04, 0x01],
            Self::Sha1 => [0x01, 0x01, 0x01],
        }
    }

    /// Length of an integrity code, and of RAKP Message 4's.
    pub fn code_length(self) -> usize {
        match self {
            Self::Sha256 => 16,
            Self::Sha1 => 12,
        }
    }

    fn digest(self, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        };
        let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
        for part in parts {
            context.update(part);
        }
        context.sign()
    }
}

/// What both sides know after RAKP Message 2.
pub struct Handshake<'a> {
    /// Suite they agreed on.
    pub suite: Suite,
    /// Our number for the session.
    pub console: u32,
    /// The BMC's number for the session.
    pub bmc: u32,
    /// Our random number.
    pub console_random: [u8; 16],
    /// The BMC's random number.
    pub bmc_random: [u8; 16],
    /// The BMC's GUID.
    pub guid: [u8; 16],
    /// The privilege asked for, with the bit that says how the user is looked up.
    pub role: u8,
    /// User's name.
    pub user: &'a [u8],
    /// User's password.
    pub password: &'a [u8],
}

impl Handshake<'_> {
    /// Whether this is RAKP Message 2's code: the BMC knows the password.
    pub fn is_rakp2(&self, code: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&self.rakp2(), code).is_ok()
    }

    /// RAKP Message 2's code.
    pub(super) fn rakp2(&self) -> Vec<u8> {
        let tag = self.suite.digest(
            self.password,
            &[
                &self.console.to_le_bytes(),
                &self.bmc.to_le_bytes(),
                &self.console_random,
                &self.bmc_random,
                &self.guid,
                &self.role(),
                self.user,
            ],
        );
        tag.as_ref().to_vec()
    }

    /// RAKP Message 3's code.
    pub fn rakp3(&self) -> Vec<u8> {
        let parts: [&[u8]; 4] = [&self.bmc_random, &self.console.to_le_bytes(), &self.role(), self.user];
        self.suite.digest(self.password, &parts).as_ref().to_vec()
    }

    /// The session's keys.
    pub fn keys(&self) -> Keys {
        let parts: [&[u8]; 4] = [&self.console_random, &self.bmc_random, &self.role(), self.user];
        let sik = Zeroizing::new(self.suite.digest(self.password, &parts).as_ref().to_vec());
        let k1 = Zeroizing::new(self.suite.digest(&sik, &[&[0x01; 20]]).as_ref().to_vec());
        let k2 = Zeroizing::new(self.suite.digest(&sik, &[&[0x02; 20]]).as_ref().to_vec());
        Keys { suite: self.suite, sik, k1, k2 }
    }

    /// Whether this is RAKP Message 4's code.
    pub fn is_rakp4(&self, keys: &Keys, code: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&self.rakp4(keys), code).is_ok()
    }

    /// RAKP Message 4's code.
    pub(super) fn rakp4(&self, keys: &Keys) -> Vec<u8> {
        let parts: [&[u8]; 3] = [&self.console_random, &self.bmc.to_le_bytes(), &self.guid];
        let tag = self.suite.digest(&keys.sik, &parts);
        tag.as_ref()[..self.suite.code_length()].to_vec()
    }

    fn role(&self) -> [u8; 2] {
        [self.role, u8::try_from(self.user.len()).expect("a name has at most 16 bytes")]
    }
}

/// The keys of a session.
pub struct Keys {
    suite: Suite,
    sik: Zeroizing<Vec<u8>>,
    k1: Zeroizing<Vec<u8>>,
    k2: Zeroizing<Vec<u8>>,
}

impl Keys {
    /// The integrity code of what it covers.
    pub fn sign(&self, covered: &[u8]) -> Vec<u8> {
        self.suite.digest(&self.k1, &[covered]).as_ref()[..self.suite.code_length()].to_vec()
    }

    /// Whether what is covered ends in its integrity code.
    pub fn is_signed(&self, covered: &[u8]) -> bool {
        let Some(length) = covered.len().checked_sub(self.suite.code_length()) else { return false };
        let (signed, code) = covered.split_at(length);
        constant_time::verify_slices_are_equal(&self.sign(signed), code).is_ok()
    }

    /// A payload encrypted (§13.29), with an initialization vector that must be random.
    pub fn encrypt(&self, vector: [u8; 16], payload: &[u8]) -> Vec<u8> {
        let mut sealed = payload.to_vec();
        let padding = u8::try_from((BLOCK - (payload.len() + 1) % BLOCK) % BLOCK).expect("less than a block");
        sealed.extend(1..=padding);
        sealed.push(padding);
        let key = EncryptingKey::cbc(self.cipher()).expect("AES takes every key");
        key.less_safe_encrypt(&mut sealed, EncryptionContext::Iv128((&vector).into())).expect("whole blocks");
        [&vector[..], &sealed].concat()
    }

    /// A payload decrypted.
    pub fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (vector, sealed) = sealed.split_first_chunk::<BLOCK>().ok_or(Malformed("a payload without its vector"))?;
        let mut payload = sealed.to_vec();
        let key = DecryptingKey::cbc(self.cipher()).expect("AES takes every key");
        key.decrypt(&mut payload, DecryptionContext::Iv128(vector.into()))
            .map_err(|_| Malformed("a payload that is not whole blocks"))?;
        // Its integrity is proven by now; what the padding holds is of no interest, and some BMCs
        // fill it with zeros.
        let padding = payload.pop().ok_or(Malformed("a payload that is empty"))?;
        let length =
            payload.len().checked_sub(padding.into()).ok_or(Malformed("a payload shorter than its padding"))?;
        payload.truncate(length);
        Ok(payload)
    }

    fn cipher(&self) -> UnboundCipherKey {
        UnboundCipherKey::new(&AES_128, &self.k2[..BLOCK]).expect("16 bytes are an AES-128 key")
    }
}

const BLOCK: usize = 16;

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn handshake(suite: Suite) -> Handshake<'static> {
        Handshake {
            suite,
            console: 0x0123_4567,
            bmc: 0x89ab_cdef,
            console_random: [0x11; 16],
            bmc_random: [0x22; 16],
            guid: [0x33; 16],
            role: 0x14,
            user: b"admin",
            password: b"password",
        }
    }

    #[test]
    fn codes_and_keys_do_not_change() {
        let mut seen = String::new();
        for suite in [Suite::Sha1, Suite::Sha256] {
            let handshake = handshake(suite);
            let keys = handshake.keys();
            seen += &format!("rakp3 {}\n", hex::encode(handshake.rakp3()));
            seen += &format!("k1    {}\nk2    {}\n", hex::encode(&keys.k1), hex::encode(&keys.k2));
            seen += &format!("sign  {}\n", hex::encode(keys.sign(b"covered")));
            seen += &format!("aes   {}\n", hex::encode(keys.encrypt([0x44; 16], b"payload")));
        }
        expect![[r#"
            rakp3 00ea698e6d9d46b42b9ce8508c48a5c121fd45de
            k1    407c12e1ea8aa8f5138e05273e759d24bcc38c30
            k2    98685ae46be3ea0f146874e5e06276604e58626e
            sign  660335f5071d71d65fb40fd2
            aes   444444444444444444444444444444445d7d19a693c7e435809e8c51979430e7
            rakp3 d97afc2737ebcf0ddd9592a855aabbc98fed46734acf921d13b7e43e19f93f43
            k1    f9827649c9c35fea0bd2d35c206f9843e662ef0a22e76bb5972596e7132b006e
            k2    a8bf5d763a517ea61b09f01640e69efc16b9d8a0e258085bc684c24ff1370307
            sign  e02c9b4d202da534c185008d8c558ecf
            aes   4444444444444444444444444444444404cd8ec6e644466f53820740870f21ca
        "#]]
        .assert_eq(&seen);
    }

    proptest! {
        #[test]
        fn what_is_encrypted_is_decrypted(payload in prop::collection::vec(any::<u8>(), 0..100), vector: [u8; 16]) {
            let keys = handshake(Suite::Sha256).keys();
            prop_assert_eq!(keys.decrypt(&keys.encrypt(vector, &payload)), Ok(payload));
        }

        #[test]
        fn no_bytes_make_decryption_panic(sealed in prop::collection::vec(any::<u8>(), 0..100)) {
            let keys = handshake(Suite::Sha1).keys();
            let _ = keys.decrypt(&sealed);
            prop_assert!(!keys.is_signed(&sealed));
        }
    }
}
