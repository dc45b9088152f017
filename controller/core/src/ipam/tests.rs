use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use proptest::prelude::*;

use super::*;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn a_prefix_is_read_as_it_is_written_and_what_is_none_says_why() {
    let mut told = String::new();
    for text in [
        "10.0.0.0/8",
        "10.0.0.7",
        "0.0.0.0/0",
        "255.255.255.255/32",
        "2001:DB8:0::/32",
        "2001:db8::1",
        "8000::/1",
        "10.0.0.7/31",
        "10.0.0.0/33",
        "10.0.0.0/300",
        "2001:db8::/129",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/",
        "10.0.0/8",
        "::ffff:10.0.0.1",
        "::ffff:10.0.0.0/104",
        "::ffff:0:0/96",
        "::/0",
        "::/80",
        "",
        "/",
    ] {
        told += &match text.parse::<Prefix>() {
            Ok(prefix) => format!("{text}: {prefix} {} {}-{}\n", prefix.family(), prefix.first(), prefix.last()),
            Err(error) => format!("{text}: {error}\n"),
        };
    }
    expect![[r#"
        10.0.0.0/8: 10.0.0.0/8 IPv4 10.0.0.0-10.255.255.255
        10.0.0.7: 10.0.0.7/32 IPv4 10.0.0.7-10.0.0.7
        0.0.0.0/0: 0.0.0.0/0 IPv4 0.0.0.0-255.255.255.255
        255.255.255.255/32: 255.255.255.255/32 IPv4 255.255.255.255-255.255.255.255
        2001:DB8:0::/32: 2001:db8::/32 IPv6 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff
        2001:db8::1: 2001:db8::1/128 IPv6 2001:db8::1-2001:db8::1
        8000::/1: 8000::/1 IPv6 8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
        10.0.0.7/31: the address has bits set beyond the length; 10.0.0.6/31 is the prefix it is in
        10.0.0.0/33: the length is at most 32
        10.0.0.0/300: the length is at most 32
        2001:db8::/129: the length is at most 128
        10.0.0.0/+8: write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32
        10.0.0.0/08: write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32
        10.0.0.0/: write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32
        10.0.0/8: write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32
        ::ffff:10.0.0.1: write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space
        ::ffff:10.0.0.0/104: write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space
        ::ffff:0:0/96: write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space
        ::/0: write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space
        ::/80: write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space
        : write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32
        /: write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32
    "#]].assert_eq(&told);
}

#[test]
fn the_ends_of_both_families_have_no_beyond() {
    let all = prefix("0.0.0.0/0");
    assert_eq!((all.parent(), all.buddy(), all.size()), (None, None, 1 << 32));
    assert_eq!(all.halves(), Some((prefix("0.0.0.0/1"), prefix("128.0.0.0/1"))));
    let one = prefix("255.255.255.255");
    assert_eq!((one.halves(), one.buddy(), one.size()), (None, Some(prefix("255.255.255.254")), 1));
    let last = prefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!((last.halves(), last.size(), last.containing().count()), (None, 1, 129));
    let half = prefix("8000::/1");
    assert_eq!(half.size(), 1 << 127);
    let every = Prefix::stored([0; 16], 0).unwrap();
    assert_eq!((every.parent(), every.buddy(), every.size(), every.length()), (None, None, u128::MAX, 0));
    assert_eq!(every.halves().map(|(_, upper)| upper), Some(half));
    assert!(every.contains(last) && !every.contains(one));
    assert_eq!(carve(every, last).unwrap().free.len(), 128);
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (any::<u32>(), 0u8..=32)
        .prop_map(|(bits, length)| Prefix::single(std::net::Ipv4Addr::from(bits).into()).unwrap().of_length(length));
    let v6 = (any::<u128>(), 0u8..=128).prop_map(|(bits, length)| {
        let single = Prefix::single(std::net::Ipv6Addr::from(bits | 1 << 127).into()).unwrap();
        single.of_length(length)
    });
    prop_oneof![v4, v6]
}

#[test]
fn the_smallest_and_lowest_that_fits_is_taken() {
    let free = ["10.0.0.0/24", "10.0.3.64/26", "10.0.1.64/26", "10.0.2.0/28"].map(prefix);
    let fit = |length| best_fit(free, length).map(|fit| fit.to_string());
    let fits = [23, 24, 25, 26, 27, 28, 32].map(|length| fit(length).unwrap_or("none".into()));
    expect!["none 10.0.0.0/24 10.0.0.0/24 10.0.1.64/26 10.0.1.64/26 10.0.2.0/28 10.0.2.0/28"]
        .assert_eq(&fits.join(" "));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn halves_parents_and_buddies_agree(prefix in any_prefix()) {
        if let Some((lower, upper)) = prefix.halves() {
            // All of IPv6 is told as one less than it has, and the sum of its halves is no number.
            let told = prefix.size() - u128::from(prefix.depth() > 0);
            prop_assert_eq!(lower.size() - 1 + upper.size(), told);
            prop_assert!(!lower.overlaps(upper) && prefix.contains(lower) && prefix.contains(upper));
            prop_assert_eq!((lower.buddy(), upper.parent()), (Some(upper), Some(prefix)));
            prop_assert_eq!((lower.first(), upper.last()), (prefix.first(), prefix.last()));
        }
        if prefix.first() != std::net::IpAddr::from([0u8; 16]) {
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
        prop_assert_eq!(Prefix::stored(prefix.key(), prefix.depth()), Some(prefix));
        prop_assert!(prefix.containing().all(|above| above.contains(prefix)));
    }

    /// What is carved and what is left are exactly what there was.
    #[test]
    fn carving_loses_nothing_and_overlaps_nothing(outer in any_prefix(), bits in any::<u128>(), more in 0u8..=128) {
        let mut wanted = outer;
        for bit in 0..more {
            let Some((lower, upper)) = wanted.halves() else { break };
            wanted = if bits >> bit & 1 == 0 { lower } else { upper };
        }
        let carved = carve(outer, wanted).unwrap();
        let mut leaves = carved.free.clone();
        leaves.push(carved.taken);
        let sum = leaves.iter().fold(0u128, |sum, leaf| sum.saturating_add(leaf.size()));
        prop_assert_eq!(sum, outer.size());
        for (at, one) in leaves.iter().enumerate() {
            prop_assert!(outer.contains(*one) && leaves[at + 1..].iter().all(|other| !one.overlaps(*other)));
        }
        prop_assert_eq!(carved.split.len(), usize::from(wanted.length() - outer.length()));
        prop_assert!(carved.split.windows(2).all(|pair| pair[1].parent() == Some(pair[0])));
        // Put together again it is what it was.
        let (mut freed, free) = (wanted, carved.free.iter().copied().collect::<BTreeSet<_>>());
        while let Some((buddy, parent)) = join(freed, outer) {
            prop_assert!(free.contains(&buddy));
            freed = parent;
        }
        prop_assert_eq!(freed, outer);
    }

    #[test]
    fn any_order_of_claims_and_releases_is_as_a_list_of_addresses_says(
        v6 in any::<bool>(),
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let root = prefix(if v6 { "2001:db8::/120" } else { "10.0.0.0/24" });
        let mut tree = Tree::new(root);
        let mut model = Model::new(root);
        for act in acts {
            match act {
                Act::Length(short) => {
                    let length = root.family().width() - short;
                    let got = tree.claim(length);
                    // The model has no tree: it looks at every aligned place.
                    prop_assert_eq!(got.is_some(), model.has_room(length));
                    if let Some(got) = got {
                        prop_assert!(model.take(got), "{} was handed out twice", got);
                    }
                }
                Act::Address(offset, short) => {
                    let wanted = model.at(offset).of_length(root.family().width() - short);
                    prop_assert_eq!(tree.claim_this(wanted), model.take(wanted));
                }
                Act::Release(which) => {
                    if let Some(held) = model.nth(which) {
                        tree.release(held);
                        model.give(held);
                    }
                }
            }
            tree.check(root);
            let mut usage = Usage::default();
            for (prefix, state) in &tree.0 {
                usage.add(*state, prefix.depth(), 1);
            }
            prop_assert_eq!((usage.total, usage.claimed), (256, model.taken() as u128));
            prop_assert_eq!(usage.largest, model.largest());
        }
        // Released in any order, all is one again.
        while let Some(held) = model.nth(7) {
            tree.release(held);
            model.give(held);
        }
        prop_assert_eq!(tree.0, BTreeMap::from([(root, State::Free)]));
    }

    #[test]
    fn shares_are_what_as_many_claims_one_after_the_other_would_be(
        claims in prop::collection::vec((0u8..=6, any::<bool>()), 0..40),
        short in 0u8..=4,
        count in 0usize..20,
    ) {
        let mut tree = Tree::new(prefix("10.0.0.0/24"));
        let held: Vec<_> = claims.into_iter().map(|(short, stays)| (tree.claim(32 - short), stays)).collect();
        for (claim, _) in held.into_iter().filter(|(_, stays)| !stays) {
            claim.into_iter().for_each(|claim| tree.release(claim));
        }
        let mut one_by_one = Tree(tree.0.clone());
        let taken: Option<Vec<_>> = (0..count).map(|_| one_by_one.claim(32 - short)).collect();
        let shares = share(tree.free(), 32 - short, count);
        prop_assert_eq!(shares.as_ref().map(|shares| &shares.taken), taken.as_ref());
        if let Some(Shares { whole, split, made, .. }) = shares {
            for (free, state) in whole.iter().map(|it| (it, State::Claimed)).chain(split.iter().map(|it| (it, State::Split))) {
                prop_assert_eq!(tree.0.insert(*free, state), Some(State::Free));
            }
            prop_assert!(made.into_iter().all(|(prefix, state)| tree.0.insert(prefix, state).is_none()));
            prop_assert_eq!(tree.0, one_by_one.0);
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Length(u8),
    Address(u8, u8),
    Release(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u8..=6).prop_map(Act::Length),
        1 => (any::<u8>(), 0u8..=4).prop_map(|(offset, short)| Act::Address(offset, short)),
        2 => any::<usize>().prop_map(Act::Release),
    ]
}

/// The tree as the store keeps it, in memory.
struct Tree(BTreeMap<Prefix, State>);

impl Tree {
    fn new(root: Prefix) -> Self {
        Self(BTreeMap::from([(root, State::Free)]))
    }

    fn free(&self) -> impl Iterator<Item = Prefix> {
        self.0.iter().filter(|(_, state)| **state == State::Free).map(|(prefix, _)| *prefix)
    }

    fn claim(&mut self, length: u8) -> Option<Prefix> {
        let free = best_fit(self.free(), length)?;
        let wanted = free.of_length(length);
        assert!(self.claim_this(wanted));
        Some(wanted)
    }

    fn claim_this(&mut self, wanted: Prefix) -> bool {
        let Some(carved) = self.free().find_map(|free| carve(free, wanted)) else { return false };
        self.0.extend(carved.split.into_iter().map(|prefix| (prefix, State::Split)));
        self.0.extend(carved.free.into_iter().map(|prefix| (prefix, State::Free)));
        self.0.insert(carved.taken, State::Claimed);
        true
    }

    fn release(&mut self, held: Prefix) {
        let root = *self.0.keys().next().unwrap();
        let mut freed = held;
        while let Some((buddy, parent)) = join(freed, root).filter(|(buddy, _)| self.0[buddy] == State::Free) {
            self.0.remove(&buddy);
            self.0.remove(&freed);
            freed = parent;
        }
        self.0.insert(freed, State::Free);
    }

    /// Leaves are disjoint and everything; no two free buddies.
    fn check(&self, root: Prefix) {
        let leaves: Vec<_> = self.0.iter().filter(|(_, state)| **state != State::Split).collect();
        assert_eq!(leaves.iter().map(|(leaf, _)| leaf.size()).sum::<u128>(), root.size());
        assert!(leaves.windows(2).all(|pair| !pair[0].0.overlaps(*pair[1].0)));
        for free in self.free() {
            assert!(free.buddy().filter(|_| free != root).is_none_or(|buddy| self.0[&buddy] != State::Free));
        }
    }
}

/// 256 addresses, one by one.
struct Model {
    root: Prefix,
    singles: Vec<Prefix>,
    held: BTreeSet<Prefix>,
}

impl Model {
    fn new(root: Prefix) -> Self {
        let mut singles = vec![root];
        while singles[0].size() > 1 {
            singles = singles.into_iter().flat_map(|prefix| <[_; 2]>::from(prefix.halves().unwrap())).collect();
        }
        Self { root, singles, held: BTreeSet::new() }
    }

    fn at(&self, offset: u8) -> Prefix {
        self.singles[usize::from(offset)]
    }

    fn is_free(&self, wanted: Prefix) -> bool {
        self.root.contains(wanted) && self.held.iter().all(|held| !held.overlaps(wanted))
    }

    fn has_room(&self, length: u8) -> bool {
        self.singles.iter().any(|single| self.is_free(single.of_length(length)))
    }

    fn take(&mut self, wanted: Prefix) -> bool {
        self.is_free(wanted) && self.held.insert(wanted)
    }

    fn give(&mut self, held: Prefix) {
        assert!(self.held.remove(&held));
    }

    fn nth(&self, which: usize) -> Option<Prefix> {
        self.held.iter().nth(which.checked_rem(self.held.len())?).copied()
    }

    fn taken(&self) -> usize {
        self.singles.iter().filter(|single| !self.is_free(**single)).count()
    }

    fn largest(&self) -> u128 {
        let lengths = self.root.length()..=self.root.family().width();
        lengths
            .filter(|length| self.has_room(*length))
            .map(|length| self.root.of_length(length).size())
            .max()
            .unwrap_or(0)
    }
}

#[test]
fn fragmentation_is_what_of_the_free_is_not_in_its_largest_block() {
    let mut usage = Usage::default();
    assert_eq!((usage.used(), usage.fragmentation()), (0.0, 0.0));
    usage.add(State::Free, prefix("10.0.0.0/30").depth(), 3);
    usage.add(State::Claimed, prefix("10.0.0.16/28").depth(), 1);
    usage.add(State::Quarantined, prefix("10.0.0.0/30").depth(), 1);
    usage.add(State::Split, prefix("10.0.0.0/24").depth(), 9);
    assert_eq!((usage.total, usage.free, usage.largest, usage.quarantined), (32, 12, 4, 4));
    assert_eq!(usage.used(), 0.625);
    assert!((usage.fragmentation() - 2.0 / 3.0).abs() < 1e-9);
    usage.add(State::Free, 0, u64::MAX);
    assert_eq!((usage.free, usage.total), (u128::MAX, u128::MAX));
}

#[test]
fn what_the_world_does_not_route_is_not_public() {
    for (kind, text, fits) in [
        (Kind::Public, "198.51.100.0/24", true),
        (Kind::Public, "172.16.9.0/24", false),
        (Kind::Global, "100.64.0.0/16", false),
        (Kind::Public, "8.0.0.0/5", false),
        (Kind::Private, "172.16.9.0/24", true),
        (Kind::Private, "198.51.100.0/24", true),
        (Kind::Public, "2001:db8::/32", true),
        (Kind::Global, "fd00::/48", false),
    ] {
        assert_eq!(kind.takes(prefix(text)), fits, "{kind} {text}");
        assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
    }
}
