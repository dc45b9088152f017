//! A picture of what is free of some space, for people to look at.

use super::Prefix;

/// How many parts a picture of a prefix has at most: a power of two.
pub const CELLS: u8 = 64;

/// A prefix cut into at most [`CELLS`] parts of one size, in their order: how much of each is not
/// free, 0 to 1. `free` are disjoint; those that are not in it do not count.
pub fn picture(whole: Prefix, free: impl IntoIterator<Item = Prefix>) -> Vec<f64> {
    let bits = (whole.family().width() - whole.length()).min(CELLS.ilog2() as u8);
    let length = whole.length() + bits;
    let each = whole.of_length(length).size() as f64;
    let mut cells = vec![1.0f64; 1 << bits];
    let number = |prefix: Prefix| {
        let offset = u128::from_be_bytes(prefix.key()) - u128::from_be_bytes(whole.key());
        // All of it is one cell when there is nothing to cut.
        offset.checked_shr(128 - u32::from(whole.depth() + bits)).unwrap_or(0) as usize
    };
    for part in free.into_iter().filter(|part| whole.contains(*part)) {
        let first = number(part);
        if part.length() <= length {
            let last = first + (1usize << (length - part.length()));
            cells[first..last].fill(0.0);
        } else {
            cells[first] -= part.size() as f64 / each;
        }
    }
    cells.iter().map(|used| used.clamp(0.0, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_picture_is_of_as_many_cells_as_there_are_addresses_and_of_64_at_most() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert_eq!(picture(prefix("10.0.0.0/30"), [prefix("10.0.0.2/32")]), [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(picture(prefix("10.0.0.1/32"), []), [1.0]);
        let wide = picture(prefix("10.9.0.0/16"), [prefix("10.9.0.0/23"), prefix("10.9.128.0/17")]);
        assert_eq!((wide.len(), wide[0], wide[31], wide[32], wide[63]), (64, 0.5, 1.0, 0.0, 0.0));
        assert_eq!(picture(prefix("2001:db8::/32"), [prefix("2001:db8::/32")]), [0.0; 64]);
        assert_eq!(picture(prefix("2000::/3"), []), [1.0; 64]);
    }

    proptest! {
        /// The cells add up to what is not free.
        #[test]
        fn nothing_of_it_is_lost(length in 8u8..=32, parts in prop::collection::btree_set(0u32..1 << 10, 0..40)) {
            let whole = Prefix::new("10.0.0.0".parse().unwrap(), 8).unwrap().of_length(length);
            let bits = (32 - length).min(10);
            let parts: std::collections::BTreeSet<_> = parts.into_iter().map(|part| part & ((1 << bits) - 1)).collect();
            let at = |part: u32| std::net::Ipv4Addr::from(0x0a00_0000 + (part << (32 - length - bits)));
            let free: Vec<_> = parts.iter().map(|part| Prefix::new(at(*part).into(), length + bits).unwrap()).collect();
            let cells = picture(whole, free.iter().copied());
            let free: u128 = free.iter().map(|part| part.size()).sum();
            let used = cells.iter().sum::<f64>() / cells.len() as f64;
            prop_assert!((used - (1.0 - free as f64 / whole.size() as f64)).abs() < 1e-9);
        }
    }
}
