use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use expect_test::{Expect, expect};
use rackhand_common::{
    audit::{Linked, Record},
    time::{Mono, Now},
};
use rackhand_controller_core::{
    access::Sight,
    ipam::{Usage, best_fit},
};
use uuid::Uuid;

use super::*;
use crate::{
    store::{
        Announcement, AnnouncementFilter, Asked, AuditFilter, ClaimFilter, NewPool, Proof, ProofKind, ProofState,
        tests::{Bench, On, at, mac, new_pool, on_both},
    },
    verbs::Denied,
};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A pool of these prefixes, in an aggregate.
async fn pool(bench: &Bench, aggregate: &str, prefixes: &[&str], quarantine: u32) -> Pool {
    let mut tx = bench.store.begin().await.unwrap();
    let vrf = tx.vrf("default").await.unwrap();
    tx.add_aggregate(at(0), &vrf, prefix(aggregate), &Source::Private).await.unwrap();
    let family = prefix(aggregate).family();
    let new = NewPool { quarantine, ..new_pool("p", &vrf, family) };
    let pool = tx.insert_pool(at(0), &new).await.unwrap();
    for text in prefixes {
        tx.extend_pool(at(0), &pool, prefix(text)).await.unwrap();
    }
    tx.commit().await.unwrap();
    pool
}

fn named(wanted: Wanted, name: &str) -> NewClaim {
    NewClaim {
        pool: "p".into(),
        wanted,
        holder: NewHolder::Name(name.into()),
        reserved: false,
        project: None,
        purpose: String::new(),
    }
}

fn to_name(name: &str) -> Move {
    Move { to: Some(NewHolder::Name(name.into())), purpose: None, grants: None }
}

fn this(text: &str) -> Wanted {
    Wanted::Prefix(prefix(text))
}

impl Bench {
    async fn claim(&self, second: i64, wanted: Wanted, name: &str) -> Result<Claim, Refused> {
        let mut tx = self.store.begin().await?;
        let claim = tx.hand_out(at(second), &named(wanted, name), "me").await?;
        tx.commit().await?;
        Ok(claim)
    }

    async fn release(&self, second: i64, claim: &Claim) -> Result<Claim, Refused> {
        let mut tx = self.store.begin().await?;
        let claim = tx.take_back(at(second), claim.id, "me").await?;
        tx.commit().await?;
        Ok(claim)
    }

    async fn hand_on(&self, second: i64, claim: &Claim, to: &str) -> Result<Claim, Refused> {
        let mut tx = self.store.begin().await?;
        let claim = tx.hand_on(at(second), claim.id, &to_name(to), "mover").await?;
        tx.commit().await?;
        Ok(claim)
    }

    /// Who held an address at a time.
    async fn held_by(&self, address: &str, second: i64) -> String {
        let vrf = self.store.vrf("default").await.unwrap();
        let holder = self.store.holder(&Sight::ALL, &vrf, prefix(address), at(second)).await.unwrap();
        holder.map_or("nobody".into(), |claim| claim.holder.name)
    }

    async fn refused(&self, second: i64, wanted: Wanted, expected: Expect) {
        let told = self.claim(second, wanted, "late").await.unwrap_err().to_string();
        let told: Vec<_> = told.split(' ').map(|word| if word.len() == 37 { "ID)" } else { word }).collect();
        expected.assert_eq(&told.join(" "));
    }

    /// The leaves of a pool, which are all of it and disjoint.
    async fn leaves(&self, pool: &Pool) -> Vec<Leaf> {
        let mut tx = self.store.begin().await.unwrap();
        let leaves = tx.leaves(pool.number).await.unwrap();
        let roots = self.store.pool_prefixes(pool, 100).await.unwrap();
        let all: u128 = roots.iter().map(|root| root.size()).sum();
        assert_eq!(leaves.iter().map(|leaf| leaf.prefix.size()).sum::<u128>(), all);
        assert!(leaves.windows(2).all(|pair| !pair[0].prefix.overlaps(pair[1].prefix)), "{leaves:?}");
        leaves
    }

    async fn usage(&self, pool: &Pool) -> Usage {
        self.store.usage(pool).await.unwrap()
    }
}

async fn blocks_and_addresses_inside_them_are_never_both_handed_out(on: On) {
    let bench = Bench::new(on).await;
    pool(&bench, "10.0.0.0/8", &["10.9.0.0/28"], 0).await;
    let block = bench.claim(1, Wanted::Length(30), "a").await.unwrap();
    assert_eq!(block.prefix, prefix("10.9.0.0/30"));
    bench
        .refused(1, this("10.9.0.2/31"), expect!["10.9.0.2/31 is not free: 10.9.0.0/30 is claimed by a (claim ID)"])
        .await;
    bench
        .refused(1, this("10.9.0.0/29"), expect!["10.9.0.0/29 is not free: 10.9.0.0/30 is claimed by a (claim ID)"])
        .await;
    let one = bench.claim(2, this("10.9.0.9"), "b").await.unwrap();
    bench
        .refused(2, this("10.9.0.8/29"), expect!["10.9.0.8/29 is not free: 10.9.0.9/32 is claimed by b (claim ID)"])
        .await;
    // What is left over around it is used before the rest is split.
    assert_eq!(bench.claim(3, Wanted::Any, "c").await.unwrap().prefix, prefix("10.9.0.8"));
    bench
        .refused(
            3,
            Wanted::Length(29),
            expect![
                "pool p has no free /29, and its largest free block is a /30; claim that, or give it another prefix"
            ],
        )
        .await;
    bench.refused(3, Wanted::Length(33), expect!["a block of IPv4 addresses has a length between 0 and 32"]).await;
    bench
        .refused(
            3,
            this("10.9.0.0/27"),
            expect!["10.9.0.0/27 is not in pool p; `rackhand pool show p` lists its prefixes"],
        )
        .await;
    bench.release(4, &one).await.unwrap();
    let again = bench.release(4, &one).await.unwrap_err().to_string();
    assert!(again.ends_with("was released at 2023-11-14T22:13:24Z"), "{again}");
}

async fn all_that_was_released_in_any_order_is_one_block_again_but_not_with_its_neighbours(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "2001:db8::/32", &["2001:db8:1::/48", "2001:db8::/48"], 0).await;
    let mut claims = Vec::new();
    for length in [64, 128, 56, 127, 49, 49, 64, 50] {
        claims.push(bench.claim(1, Wanted::Length(length), "x").await.unwrap());
    }
    assert!(bench.leaves(&pool).await.len() > 40);
    claims.sort_by_key(|claim| claim.prefix.last());
    while let Some(claim) = claims.pop() {
        bench.release(2, &claim).await.unwrap();
        if !claims.is_empty() {
            let middle = claims.len() / 2;
            bench.release(2, &claims.remove(middle)).await.unwrap();
        }
    }
    // Two halves of a /47, each a prefix of the pool by itself.
    let leaves: Vec<_> = bench.leaves(&pool).await.iter().map(|leaf| leaf.prefix).collect();
    assert_eq!(leaves, [prefix("2001:db8::/48"), prefix("2001:db8:1::/48")]);
}

async fn what_was_released_rests_and_what_was_reserved_does_not(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/30"], 60).await;
    let mut claims = Vec::new();
    for name in ["a", "b", "c"] {
        claims.push(bench.claim(0, Wanted::Any, name).await.unwrap());
    }
    let mut tx = bench.store.begin().await.unwrap();
    let gateway = NewClaim { reserved: true, ..named(this("10.9.0.3"), "gateway") };
    let gateway = tx.hand_out(at(0), &gateway, "me").await.unwrap();
    tx.commit().await.unwrap();
    bench
        .refused(
            1,
            Wanted::Any,
            expect!["pool p has no free /32, and nothing in it is free; release something, or give it another prefix"],
        )
        .await;
    bench
        .refused(1, this("10.9.0.3"), expect!["10.9.0.3/32 is not free: 10.9.0.3/32 is reserved as gateway (claim ID)"])
        .await;
    bench.release(10, &gateway).await.unwrap();
    let usage = bench.usage(&pool).await;
    assert_eq!((usage.claimed, usage.free, usage.quarantined, usage.reserved), (3, 1, 0, 0));
    assert_eq!(bench.claim(10, Wanted::Any, "d").await.unwrap().prefix, prefix("10.9.0.3"));

    bench.release(20, &claims[1]).await.unwrap();
    bench
        .refused(
            79,
            this("10.9.0.1"),
            expect!["10.9.0.1/32 is in quarantine until 2023-11-14T22:14:40Z; claim another, or wait"],
        )
        .await;
    bench
        .refused(
            79,
            Wanted::Any,
            expect!["pool p has no free /32, and nothing in it is free; release something, or give it another prefix"],
        )
        .await;
    bench
        .refused(79, this("10.9.0.0/31"), expect!["10.9.0.0/31 is not free: 10.9.0.0/32 is claimed by a (claim ID)"])
        .await;
    assert_eq!(bench.claim(80, this("10.9.0.1"), "e").await.unwrap().prefix, prefix("10.9.0.1"));
    bench.release(90, &claims[0]).await.unwrap();
    bench.release(91, &claims[2]).await.unwrap();
    assert_eq!(bench.claim(150, Wanted::Any, "f").await.unwrap().prefix, prefix("10.9.0.0"));
}

async fn space_that_rests_in_parts_is_one_block_once_all_of_it_rested(on: On) {
    let bench = Bench::new(on).await;
    pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 60).await;
    let mut claims = Vec::new();
    for _ in 0..256 {
        claims.push(bench.claim(0, Wanted::Any, "x").await.unwrap());
    }
    for claim in &claims {
        bench.release(1, claim).await.unwrap();
    }
    bench
        .refused(
            60,
            this("10.9.0.0/25"),
            expect!["10.9.0.0/32 is in quarantine until 2023-11-14T22:14:21Z; claim another, or wait"],
        )
        .await;
    assert_eq!(bench.claim(61, Wanted::Length(24), "y").await.unwrap().prefix, prefix("10.9.0.0/24"));
}

async fn more_than_one_transaction_frees_is_freed_by_and_by(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/22"], 60).await;
    let mut tx = bench.store.begin().await.unwrap();
    for _ in 0..1024 {
        let claim = tx.hand_out(at(0), &named(Wanted::Any, "x"), "me").await.unwrap();
        tx.take_back(at(0), claim.id, "me").await.unwrap();
    }
    tx.commit().await.unwrap();
    for wanted in [Wanted::Length(22), this("10.9.0.0/22")] {
        let refused =
            expect!["what has rested in pool p is being put together to larger blocks; try again in a minute"];
        bench.refused(60, wanted, refused).await;
    }
    assert_eq!(wake_rested(&bench.store, at(59)).await.unwrap(), 0);
    for left in (0..1024 / u128::from(SOME_RESTED)).rev() {
        assert_eq!(wake_rested(&bench.store, at(60)).await.unwrap(), SOME_RESTED as usize);
        assert_eq!(bench.usage(&pool).await.quarantined, left * u128::from(SOME_RESTED));
    }
    assert_eq!(wake_rested(&bench.store, at(60)).await.unwrap(), 0);
    bench.claim(60, this("10.9.0.0/22"), "all").await.unwrap();
}

async fn what_was_not_committed_or_was_gone_back_on_left_nothing(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 0).await;
    let kept = bench.claim(0, Wanted::Length(30), "kept").await.unwrap();
    let before = bench.leaves(&pool).await;
    let mut tx = bench.store.begin().await.unwrap();
    tx.hand_out(at(1), &named(Wanted::Length(28), "x"), "me").await.unwrap();
    tx.take_back(at(1), kept.id, "me").await.unwrap();
    drop(tx);
    assert_eq!(bench.leaves(&pool).await, before);

    let mut tx = bench.store.begin().await.unwrap();
    tx.mark().await.unwrap();
    tx.hand_out(at(1), &named(Wanted::Length(28), "x"), "me").await.unwrap();
    tx.take_back(at(1), kept.id, "me").await.unwrap();
    tx.go_back().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bench.leaves(&pool).await, before);
    let claims = bench.store.claims(&ClaimFilter::default(), None, 10).await.unwrap();
    assert_eq!(claims, [kept]);
}

async fn who_held_an_address_is_known_for_every_time_also_by_block_and_after_the_clock_went_back(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 0).await;
    let first = bench.claim(10, this("10.9.0.4"), "first").await.unwrap();
    bench.release(20, &first).await.unwrap();
    let block = bench.claim(30, this("10.9.0.0/28"), "block").await.unwrap();
    bench.release(40, &block).await.unwrap();
    // The clock is an hour behind from here on.
    let mut tx = bench.store.begin().await.unwrap();
    assert_eq!(tx.address_time(at(40)).await.unwrap(), at(40));
    let now = tx.address_time(at(40 - 3600)).await.unwrap();
    let pair = tx.hand_out(now, &named(this("10.9.0.4/31"), "pair"), "me").await.unwrap();
    // Claimed and released at one time, it was nobody's at any.
    tx.take_back(now, pair.id, "me").await.unwrap();
    let last = tx.hand_out(now, &named(this("10.9.0.4/31"), "last"), "me").await.unwrap();
    tx.commit().await.unwrap();

    let vrf = bench.store.vrf("default").await.unwrap();
    let mut told = String::new();
    for second in [9, 10, 19, 20, 30, 39, 40, 5000] {
        let holder = bench.store.holder(&Sight::ALL, &vrf, prefix("10.9.0.4"), at(second)).await.unwrap();
        told += &format!("{second}: {}\n", holder.map_or("nobody".into(), |claim| claim.holder.name));
    }
    expect![[r#"
        9: nobody
        10: first
        19: first
        20: nobody
        30: block
        39: block
        40: last
        5000: last
    "#]]
    .assert_eq(&told);
    let history = bench.store.history(&Sight::ALL, &vrf, prefix("10.9.0.4"), None, 10).await.unwrap();
    let names: Vec<_> = history.iter().map(|claim| claim.holder.name.as_str()).collect();
    assert_eq!(names, ["last", "pair", "block", "first"]);
    let more = bench.store.history(&Sight::ALL, &vrf, prefix("10.9.0.4"), Some(history[1].id), 1).await.unwrap();
    assert_eq!(more[0].holder.name, "block");
    assert_eq!(bench.store.holder(&Sight::ALL, &vrf, prefix("10.9.0.6"), at(50)).await.unwrap(), None);
    // The history outlives the pool.
    bench.release(50, &last).await.unwrap();
    let mut tx = bench.store.begin().await.unwrap();
    tx.remove_pool(at(60), &pool).await.unwrap();
    tx.commit().await.unwrap();
    let held = bench.store.holder(&Sight::ALL, &vrf, prefix("10.9.0.5"), at(45)).await.unwrap().unwrap();
    assert_eq!((held.holder.name.as_str(), held.pool.as_str()), ("last", "p"));
}

async fn a_claim_that_moves_is_never_nobodys_and_the_history_says_whose_it_was_when(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 60).await;
    let claim = bench.claim(10, this("10.9.0.16/28"), "a").await.unwrap();
    let before = bench.usage(&pool).await;
    let moved = bench.hand_on(20, &claim, "b").await.unwrap();
    assert_eq!((moved.id, moved.prefix, moved.version), (claim.id, claim.prefix, 2));
    assert_eq!((moved.since, moved.claimed_by.as_str()), (at(20), "mover"));
    // To whom has it already nothing is written.
    assert_eq!(bench.hand_on(25, &claim, "b").await.unwrap(), moved);
    // Twice at one instant, and again when the clock is an hour behind.
    for to in ["c", "d"] {
        let mut tx = bench.store.begin().await.unwrap();
        let now = tx.address_time(at(30)).await.unwrap();
        tx.hand_on(now, claim.id, &to_name(to), "mover").await.unwrap();
        tx.commit().await.unwrap();
    }
    let mut tx = bench.store.begin().await.unwrap();
    let now = tx.address_time(at(30 - 3600)).await.unwrap();
    tx.hand_on(now, claim.id, &to_name("e"), "mover").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bench.usage(&pool).await, before, "no address was anybody else's, or rested");
    bench.release(50, &moved).await.unwrap();
    let again = bench.hand_on(60, &claim, "f").await.unwrap_err().to_string();
    assert!(again.ends_with("was released at 2023-11-14T22:14:10Z"), "{again}");

    let mut told = String::new();
    for second in [9, 10, 19, 20, 29, 30, 49, 50] {
        told += &format!("{second}: {}\n", bench.held_by("10.9.0.20", second).await);
    }
    expect![[r#"
        9: nobody
        10: a
        19: a
        20: b
        29: b
        30: e
        49: e
        50: nobody
    "#]]
    .assert_eq(&told);
    // The history, page by page: the claim itself is the latest, and who held it before follows.
    let vrf = bench.store.vrf("default").await.unwrap();
    let (mut names, mut last) = (Vec::new(), None);
    loop {
        let page = bench.store.history(&Sight::ALL, &vrf, prefix("10.9.0.31"), last, 2).await.unwrap();
        let Some(end) = page.last() else { break };
        last = Some(end.id);
        names.extend(page.into_iter().map(|claim| claim.holder.name));
    }
    assert_eq!(names, ["e", "d", "c", "b", "a"]);
    let history = bench.store.history(&Sight::ALL, &vrf, prefix("10.9.0.31"), None, 10).await.unwrap();
    assert_eq!(history[0].id, claim.id);
    assert_eq!((history[4].released_by.as_deref(), history[4].until), (Some("mover"), Some(at(20))));
    // What was before a move is nothing that is held.
    assert_eq!(bench.store.claims(&ClaimFilter::default(), None, 10).await.unwrap(), []);
}

/// Claims, moves and releases in any order, with a list of who has what beside them.
async fn whatever_moves_everybodys_time_is_as_a_list_says(on: On) {
    let bench = Bench::new(on).await;
    pool(&bench, "10.0.0.0/8", &["10.9.0.0/30"], 0).await;
    let mut held: [Option<Claim>; 4] = [None, None, None, None];
    let mut list = Vec::new();
    for second in 0..120 {
        let place = rand::random_range(0..4);
        let name = format!("n{}", rand::random_range(0..5));
        held[place] = match held[place].take() {
            None => Some(bench.claim(second, this(&format!("10.9.0.{place}")), &name).await.unwrap()),
            Some(claim) if rand::random_bool(0.7) => Some(bench.hand_on(second, &claim, &name).await.unwrap()),
            Some(claim) => {
                bench.release(second, &claim).await.unwrap();
                None
            }
        };
        list.push(
            held.each_ref().map(|claim| claim.as_ref().map_or("nobody".into(), |claim| claim.holder.name.clone())),
        );
    }
    for (second, names) in (0..).zip(&list) {
        for (place, name) in names.iter().enumerate() {
            assert_eq!(bench.held_by(&format!("10.9.0.{place}"), second).await, *name, "10.9.0.{place} at {second}");
        }
    }
    // Rows of one address follow each other, and touch where it moved.
    let mut rows = bench.store.history_of_all().await.unwrap();
    rows.sort_by_key(|row| (row.prefix.key(), row.since, row.until.is_none()));
    let pairs = rows.windows(2).filter(|pair| pair[0].prefix == pair[1].prefix);
    assert!(pairs.clone().all(|pair| pair[0].until.unwrap() <= pair[1].since), "{rows:?}");
    assert!(pairs.filter(|pair| pair[0].until == Some(pair[1].since)).count() > 10, "a test of nothing");
}

async fn aggregates_and_pools_of_a_vrf_are_disjoint_and_go_when_they_are_empty(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/24", "10.9.2.0/24"], 60).await;
    let mut tx = bench.store.begin().await.unwrap();
    let default = tx.vrf("default").await.unwrap();
    let other = tx.insert_vrf(at(0), "other").await.unwrap();
    tx.mark().await.unwrap();
    assert!(matches!(tx.insert_vrf(at(0), "other").await, Err(StoreError::Taken(_))));
    tx.go_back().await.unwrap();
    let mut told = String::new();
    let mut tell =
        |what: Result<(), Refused>| told += &format!("{}\n", what.map_or_else(|e| e.to_string(), |()| "done".into()));
    for text in ["10.9.0.0/24", "0.0.0.0/1", "11.0.0.0/8"] {
        tell(tx.add_aggregate(at(0), &default, prefix(text), &Source::Private).await.map(drop));
    }
    tell(tx.add_aggregate(at(0), &other, prefix("10.0.0.0/8"), &Source::Private).await.map(drop));
    for text in ["10.9.0.128/25", "10.9.0.0/22", "10.9.1.0/24", "12.0.0.0/24", "8.0.0.0/6", "2001:db8::/48"] {
        tell(tx.extend_pool(at(0), &pool, prefix(text)).await);
    }
    let proof = Proof { kind: ProofKind::Loa, reference: "ticket 7".into(), state: ProofState::Pending };
    let brought = Source::Customer { name: "shop".into(), proof: proof.clone() };
    let brought = tx.add_aggregate(at(0), &default, prefix("198.51.100.0/24"), &brought).await.unwrap();
    tell(tx.extend_pool(at(0), &pool, prefix("198.51.100.0/25")).await);
    let verified = Source::Customer { name: "shop".into(), proof: Proof { state: ProofState::Verified, ..proof } };
    tx.set_source(&brought, &verified).await.unwrap();
    tell(tx.extend_pool(at(0), &pool, prefix("198.51.100.0/25")).await);
    tell(tx.remove_aggregate(&brought).await);
    let public = NewPool { kind: Kind::Public, ..new_pool("public", &default, Family::V4) };
    let public = tx.insert_pool(at(0), &public).await.unwrap();
    tell(tx.extend_pool(at(0), &public, prefix("10.10.0.0/24")).await);
    tell(tx.extend_pool(at(0), &public, prefix("198.51.100.128/25")).await);

    let claim = tx.hand_out(at(0), &named(Wanted::Length(25), "x"), "me").await.unwrap();
    tx.commit().await.unwrap();
    let remove = async |second| {
        let mut tx = bench.store.begin().await.unwrap();
        let removed = tx.remove_pool(at(second), &pool).await;
        match removed {
            Ok(()) => tx.commit().await.map_err(Refused::from),
            refused => refused,
        }
    };
    tell(remove(1).await);
    bench.release(2, &claim).await.unwrap();
    tell(remove(61).await);
    tell(remove(62).await);
    let mut tx = bench.store.begin().await.unwrap();
    let private = tx.aggregate_at("default", prefix("10.0.0.0")).await.unwrap().unwrap();
    tell(tx.remove_aggregate(&private).await);
    tell(tx.remove_aggregate(&brought).await);
    tell(tx.remove_pool(at(62), &public).await);
    tell(tx.remove_aggregate(&brought).await);
    expect![[r#"
        10.9.0.0/24 overlaps with aggregate 10.0.0.0/8 of the same VRF
        0.0.0.0/1 overlaps with aggregate 10.0.0.0/8 of the same VRF
        done
        done
        10.9.0.128/25 is not all free: a pool has some of it; `rackhand pool list` shows which
        10.9.0.0/22 is not all free: a pool has some of it; `rackhand pool list` shows which
        done
        no aggregate of VRF default contains 12.0.0.0/24; `rackhand aggregate create` adds one
        no aggregate of VRF default contains 8.0.0.0/6; `rackhand aggregate create` adds one
        2001:db8::/48 is not IPv4, as the rest of the pool is; make a pool for each family
        198.51.100.0/24 is a customer's, and nobody has verified that we may use it; look at the proof, then `rackhand aggregate prove` it
        done
        198.51.100.0/24 is not all free: pools have some of it; delete them first
        10.10.0.0/24 is not routed by the world: a public pool cannot have it; make the pool private
        done
        pool p is not all free: release what is claimed from it, and wait for what is in quarantine
        pool p is not all free: release what is claimed from it, and wait for what is in quarantine
        done
        done
        198.51.100.0/24 is not all free: pools have some of it; delete them first
        done
        done
    "#]].assert_eq(&told);
}

async fn a_projects_blocks_grow_with_its_claims_hold_no_others_and_go_back(on: On) {
    let bench = Bench::new(on).await;
    let mut tx = bench.store.begin().await.unwrap();
    let vrf = tx.vrf("default").await.unwrap();
    tx.add_aggregate(at(0), &vrf, prefix("10.0.0.0/8"), &Source::Private).await.unwrap();
    let blocks = Some(Blocks { depth: 96 + 30, most: 2 });
    let pool = tx.insert_pool(at(0), &NewPool { blocks, ..new_pool("p", &vrf, Family::V4) }).await.unwrap();
    tx.extend_pool(at(0), &pool, prefix("10.9.0.0/28")).await.unwrap();
    let acme = tx.insert_organisation(at(0), "acme").await.unwrap();
    let shop = tx.insert_project(at(0), &acme, "shop").await.unwrap().id;
    let blog = tx.insert_project(at(0), &acme, "blog").await.unwrap().id;
    let wish = |project, wanted| NewClaim { project, ..named(wanted, "x") };
    let mut told = String::new();
    let mut claim = async |project: Option<ProjectId>, pool: &str, wanted| {
        tx.mark().await.unwrap();
        match tx.hand_out(at(1), &NewClaim { pool: pool.into(), ..wish(project, wanted) }, "me").await {
            Ok(claim) => {
                tx.go_on().await.unwrap();
                told += &format!("{} of {}\n", claim.prefix, claim.pool);
            }
            Err(refused) => {
                tx.go_back().await.unwrap();
                told += &format!("{refused}\n");
            }
        }
    };
    for _ in 0..3 {
        claim(Some(shop), "p", Wanted::Any).await;
        claim(Some(blog), "p", Wanted::Length(31)).await;
    }
    claim(None, "p", Wanted::Any).await;
    claim(Some(shop), "p", Wanted::Length(29)).await;
    claim(Some(shop), "p", Wanted::Length(30)).await;
    claim(Some(shop), "p", this("10.9.0.4/31")).await;
    claim(Some(blog), "p.shop", Wanted::Any).await;
    claim(None, "p.shop", Wanted::Any).await;
    claim(Some(blog), "p", Wanted::Length(31)).await;
    claim(Some(blog), "p", Wanted::Length(31)).await;
    expect![[r#"
        10.9.0.0/32 of p.shop
        10.9.0.4/31 of p.blog
        10.9.0.1/32 of p.shop
        10.9.0.6/31 of p.blog
        10.9.0.2/32 of p.shop
        10.9.0.8/31 of p.blog
        10.9.0.12/32 of p
        each project gets blocks of a /30 of pool p, and a /29 is larger; claim less
        pool p has no free /30, and its largest free block is a /31; claim that, or give it another prefix
        10.9.0.4/31 is not in pool p.shop; `rackhand pool show p.shop` lists its prefixes
        pool p.shop is another project's alone; claim from the pool that it is carved from
        10.9.0.3/32 of p.shop
        10.9.0.10/31 of p.blog
        the project's 2 blocks of pool p have no free /31: release something, or have an administrator make a pool for it
    "#]]
    .assert_eq(&told);
    tx.commit().await.unwrap();

    // All of it goes back to where it was carved from.
    let usage = bench.store.usage(&pool).await.unwrap();
    assert_eq!((usage.total, usage.blocks, usage.claimed, usage.free), (16, 12, 1, 3));
    let filter = ClaimFilter { pool: Some(pool.id), ..ClaimFilter::default() };
    let claims = bench.store.claims(&filter, None, 100).await.unwrap();
    assert_eq!(claims.len(), 9);
    let mut tx = bench.store.begin().await.unwrap();
    assert!(matches!(tx.remove_pool(at(2), &pool).await, Err(Refused::PoolInUse(_))));
    for claim in claims {
        tx.take_back(at(2), claim.id, "me").await.unwrap();
    }
    assert!(matches!(tx.remove_pool(at(3), &pool).await, Err(Refused::PoolInUse(_))), "projects have blocks of it");
    for of in [shop, blog] {
        for pool in tx.pools_of(of).await.unwrap() {
            tx.remove_pool(at(3), &pool).await.unwrap();
        }
        assert!(tx.delete_project(of).await.unwrap());
    }
    let leaves = tx.leaves(pool.number).await.unwrap();
    assert_eq!(leaves.iter().map(|leaf| leaf.prefix).collect::<Vec<_>>(), [prefix("10.9.0.0/28")]);
    tx.remove_pool(at(3), &pool).await.unwrap();
    tx.commit().await.unwrap();

    // In whose block an address was is known after all of them are gone.
    let of = async |address: &str, second: Option<i64>| {
        let found = bench.store.project_blocks(&Sight::ALL, &vrf, prefix(address), second.map(at), None, 10).await;
        let told = found.unwrap().into_iter().map(|block| {
            let until = block.until.map_or("now".into(), |until| (until - at(0)).as_secs().to_string());
            format!("{} {} {}–{until}", block.project_name, block.prefix, (block.since - at(0)).as_secs())
        });
        told.collect::<Vec<_>>().join(", ")
    };
    expect!["acme:shop 10.9.0.0/30 1–3"].assert_eq(&of("10.9.0.3", None).await);
    expect!["acme:blog 10.9.0.8/30 1–3"].assert_eq(&of("10.9.0.9", Some(2)).await);
    expect![""].assert_eq(&of("10.9.0.9", Some(3)).await);
    expect![""].assert_eq(&of("10.9.0.9", Some(0)).await);
    expect![""].assert_eq(&of("10.9.0.12", None).await);
}

async fn announce(tx: &mut Tx, second: i64, claim: &Claim, machine: &Machine) -> Result<Announcement, Refused> {
    let claim = tx.claim(claim.id).await?;
    let pool = tx.pool_numbered(claim.pool_number).await?;
    tx.announce(at(second), &claim, &pool, machine, "me").await
}

/// Who announces what.
async fn told_announcements(bench: &Bench, filter: AnnouncementFilter) -> String {
    let found = bench.store.announcements(&filter, None, 10).await.unwrap();
    found.iter().map(|one| format!("{} {}", one.name, one.prefix)).collect::<Vec<_>>().join(", ")
}

async fn an_address_is_announced_by_its_holder_or_in_as_many_places_as_its_pool_is_for(on: On) {
    let bench = Bench::new(on).await;
    let (far, _) = bench.another_rack().await;
    let mut tx = bench.store.begin().await.unwrap();
    let vrf = tx.vrf("default").await.unwrap();
    tx.add_aggregate(at(0), &vrf, prefix("198.51.100.0/22"), &Source::Private).await.unwrap();
    for (name, kind, within, prefixes) in [
        ("public", Kind::Public, Within::Everywhere, "198.51.100.0/24"),
        ("anycast", Kind::Global, Within::Everywhere, "198.51.101.0/24"),
        ("local", Kind::Private, Within::Rack(far), "198.51.102.0/24"),
    ] {
        let pool = tx.insert_pool(at(0), &NewPool { kind, within, ..new_pool(name, &vrf, Family::V4) }).await.unwrap();
        tx.extend_pool(at(0), &pool, prefix(prefixes)).await.unwrap();
    }
    // m1 and m2 stand in one rack, m3 in another site's.
    let site = tx.insert_site(at(0), "far").await.unwrap();
    tx.move_rack(far, site.id).await.unwrap();
    let (m1, m2, m3) = (bench.machine(1), bench.machine(2), Machine { rack: far, ..bench.machine(3) });
    for machine in [&m1, &m2, &m3] {
        tx.insert_machine(machine).await.unwrap();
    }
    let acme = tx.insert_organisation(at(0), "acme").await.unwrap();
    let shop = tx.insert_project(at(0), &acme, "shop").await.unwrap().id;
    let mut of = async |pool: &str, project| {
        let wish = NewClaim { pool: pool.into(), project, ..named(Wanted::Any, "dns") };
        tx.hand_out(at(1), &wish, "me").await.unwrap()
    };
    let (public, anycast, local) = (of("public", None).await, of("anycast", Some(shop)).await, of("local", None).await);
    let reserved = NewClaim { reserved: true, ..named(Wanted::Any, "gateway") };
    let reserved = tx.hand_out(at(1), &NewClaim { pool: "public".into(), ..reserved }, "me").await.unwrap();
    let mut told = String::new();
    for (claim, machine) in [
        (&anycast, &m1),
        (&anycast, &m3),
        (&anycast, &m1),
        (&public, &m1),
        (&public, &m2),
        (&public, &m3),
        (&local, &m1),
        (&local, &m3),
        (&reserved, &m1),
    ] {
        let line = match announce(&mut tx, 2, claim, machine).await {
            Ok(one) => format!("{} announces {}", one.name, one.prefix),
            Err(refused) => refused.to_string(),
        };
        told += &format!("{line}\n");
    }
    expect![[r#"
        m1 announces 198.51.101.0/32
        m3 announces 198.51.101.0/32
        m1 announces 198.51.101.0/32
        m1 announces 198.51.100.0/32
        m2 announces 198.51.100.0/32
        pool public is public: its addresses are in one place, and m1, which announces 198.51.100.0/32, stands in another site; claim from a global pool what several sites shall announce (anycast)
        pool local is for the machines of one rack, and m1 is in another; claim from a pool of its rack
        m3 announces 198.51.102.0/32
        198.51.100.1/32 is reserved: nobody announces it
    "#]]
    .assert_eq(&told);
    // Held by a machine it is that one's alone.
    let to = |machine: &Machine| Move {
        to: Some(NewHolder::Machine(machine.name.clone(), None)),
        purpose: None,
        grants: None,
    };
    tx.hand_on(at(3), public.id, &to(&m2), "me").await.unwrap();
    let refused = announce(&mut tx, 3, &public, &m1).await.unwrap_err();
    expect!["198.51.100.0/32 is m2's, which alone can announce it; `rackhand ip move` it to a name when several machines shall"]
        .assert_eq(&refused.to_string());
    // A machine that announces something is neither forgotten, nor given to others than its addresses' project.
    assert!(matches!(tx.forget(at(3), &m3).await, Err(Denied::HasAddresses(_))));
    let blog = tx.insert_project(at(3), &acme, "blog").await.unwrap().id;
    let given = tx.assign(at(3), &m1, Some((blog, "acme:blog".into()))).await;
    assert!(matches!(given, Err(Denied::HasAddressesOfOthers(_))), "{given:?}");
    let m1 = tx.assign(at(3), &m1, Some((shop, "acme:shop".into()))).await.unwrap();
    let refused = announce(&mut tx, 3, &local, &m1).await.unwrap_err();
    expect!["machine m1 is another project's: what it holds is that project's too"].assert_eq(&refused.to_string());
    tx.commit().await.unwrap();
    expect!["m1 198.51.101.0/32, m3 198.51.101.0/32, m2 198.51.100.0/32, m3 198.51.102.0/32"]
        .assert_eq(&told_announcements(&bench, AnnouncementFilter::default()).await);
    let by = |machine: &Machine| AnnouncementFilter { machine: Some(machine.id), ..AnnouncementFilter::default() };
    expect!["m3 198.51.101.0/32, m3 198.51.102.0/32"].assert_eq(&told_announcements(&bench, by(&m3)).await);
    let of_shop = AnnouncementFilter { project: Some(shop), ..AnnouncementFilter::default() };
    expect!["m1 198.51.101.0/32, m3 198.51.101.0/32"].assert_eq(&told_announcements(&bench, of_shop).await);

    // What is withdrawn or released ends, and is known afterwards; so is what a move ended.
    let mut tx = bench.store.begin().await.unwrap();
    let first = tx.announcements_of(anycast.id).await.unwrap().remove(0);
    tx.withdraw(at(4), first, "me").await.unwrap();
    tx.take_back(at(5), anycast.id, "me").await.unwrap();
    let refused = announce(&mut tx, 6, &anycast, &m3).await.unwrap_err();
    assert!(matches!(refused, Refused::Over(..)), "{refused}");
    tx.commit().await.unwrap();
    let announced = async |address: &str, second: Option<i64>| {
        let found =
            bench.store.announcement_history(&Sight::ALL, &vrf, prefix(address), second.map(at), None, 10).await;
        let told = found.unwrap().into_iter().map(|one| {
            let until = one.until.map_or("now".into(), |until| (until - at(0)).as_secs().to_string());
            format!("{} {}–{until}", one.name, (one.since - at(0)).as_secs())
        });
        told.collect::<Vec<_>>().join(", ")
    };
    expect!["m3 2–5, m1 2–4"].assert_eq(&announced("198.51.101.0", None).await);
    expect!["m3 2–5"].assert_eq(&announced("198.51.101.0", Some(4)).await);
    expect![""].assert_eq(&announced("198.51.101.0", Some(5)).await);
    expect!["m2 2–now, m1 2–3"].assert_eq(&announced("198.51.100.0", None).await);
    // A machine that its project gives back leaves the project what it held, and announces nothing.
    let mut tx = bench.store.begin().await.unwrap();
    let wish = NewClaim {
        pool: "public".into(),
        holder: NewHolder::Machine("m1".into(), None),
        project: Some(shop),
        ..named(Wanted::Any, "")
    };
    let held = tx.hand_out(at(7), &wish, "me").await.unwrap();
    announce(&mut tx, 7, &held, &m1).await.unwrap();
    tx.leave_addresses(at(8), &m1, "release").await.unwrap();
    tx.commit().await.unwrap();
    let left = bench.store.claim(held.id).await.unwrap();
    assert_eq!(left.holder, Holder { machine: None, mac: None, name: "m1".into() });
    assert_eq!((left.project, left.until), (Some(shop), None));
    expect!["m1 7–8"].assert_eq(&announced(&left.prefix.first().to_string(), None).await);
    expect![""].assert_eq(&told_announcements(&bench, by(&m1)).await);

    // The machines' events tell of it.
    let filter = crate::store::EventFilter { machine: Some(m3.id), ..crate::store::EventFilter::default() };
    let events = bench.store.events(0, &filter, 10).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| format!("{:?}", event.body)).collect();
    expect![[r#"
        AddressesAnnounced { prefix: "198.51.101.0/32" }
        AddressesAnnounced { prefix: "198.51.102.0/32" }
        AddressesWithdrawn { prefix: "198.51.101.0/32" }"#]]
    .assert_eq(&kinds.join("\n"));
}

async fn a_machine_gets_addresses_of_its_racks_pools_for_its_own_cards_and_is_not_forgotten_with_them(on: On) {
    let bench = Bench::new(on).await;
    let (elsewhere, _) = bench.another_rack().await;
    pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 0).await;
    let mut tx = bench.store.begin().await.unwrap();
    let machine = bench.machine(1);
    tx.insert_machine(&machine).await.unwrap();
    let vrf = tx.vrf("default").await.unwrap();
    let theirs = NewPool { within: Within::Rack(elsewhere), ..new_pool("theirs", &vrf, Family::V4) };
    let theirs = tx.insert_pool(at(0), &theirs).await.unwrap();
    tx.extend_pool(at(0), &theirs, prefix("10.8.0.0/24")).await.unwrap();
    let wish = |mac| NewClaim { holder: NewHolder::Machine("m1".into(), mac), ..named(Wanted::Length(31), "") };
    let refused = tx.hand_out(at(1), &NewClaim { pool: "theirs".into(), ..wish(None) }, "me").await.unwrap_err();
    expect!["pool theirs is for the machines of one rack, and m1 is in another; claim from a pool of its rack"]
        .assert_eq(&refused.to_string());
    let refused = tx.hand_out(at(1), &wish(Some(mac(9))), "me").await.unwrap_err();
    expect!["machine m1 has no network card 52:54:00:00:00:09; `rackhand machine show m1` lists them"]
        .assert_eq(&refused.to_string());
    // Nor does what is moved go where it could not have been claimed.
    let local = tx.hand_out(at(1), &NewClaim { pool: "theirs".into(), ..named(Wanted::Any, "x") }, "me").await.unwrap();
    let to = |mac| Move { to: Some(NewHolder::Machine("m1".into(), mac)), purpose: None, grants: None };
    let refused = tx.hand_on(at(1), local.id, &to(None), "me").await.unwrap_err();
    assert!(matches!(refused, Refused::Elsewhere { .. }), "{refused}");
    let vpn = tx.hand_out(at(1), &named(Wanted::Any, "vpn"), "me").await.unwrap();
    let refused = tx.hand_on(at(1), vpn.id, &to(Some(mac(9))), "me").await.unwrap_err();
    assert!(matches!(refused, Refused::NotItsCard { .. }), "{refused}");
    let moved = tx.hand_on(at(1), vpn.id, &to(None), "me").await.unwrap();
    assert_eq!(moved.holder, Holder { machine: Some(machine.id), mac: None, name: "m1".into() });
    let moved = tx.hand_on(at(1), vpn.id, &to_name("vpn"), "me").await.unwrap();
    assert_eq!(moved.holder.machine, None);
    let claim = tx.hand_out(at(1), &wish(Some(mac(1))), "me").await.unwrap();
    assert_eq!(claim.holder, Holder { machine: Some(machine.id), mac: Some(mac(1)), name: "m1".into() });
    let refused = tx.forget(at(2), &machine).await.unwrap_err().to_string();
    expect![[r#"machine m1 holds or announces addresses; release or withdraw them first: `rackhand ip list --machine m1` and `rackhand ip announcements --machine m1` show them"#]]
        .assert_eq(&refused);
    // Merged into another, it brings them along.
    let other = bench.machine(2);
    tx.insert_machine(&other).await.unwrap();
    tx.merge(at(3), &machine, &other).await.unwrap();
    tx.commit().await.unwrap();
    let filter = ClaimFilter { machine: Some(other.id), ..ClaimFilter::default() };
    let brought = &bench.store.claims(&filter, None, 10).await.unwrap()[0];
    assert_eq!((brought.id, brought.version), (claim.id, 2));
}

async fn a_list_of_claims_is_narrowed_and_paged(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 0).await;
    let a = bench.claim(1, this("10.9.0.0/28"), "a").await.unwrap();
    let b = bench.claim(1, this("10.9.0.17"), "b").await.unwrap();
    let gone = bench.claim(1, this("10.9.0.18"), "a").await.unwrap();
    bench.release(2, &gone).await.unwrap();
    let list = async |filter: ClaimFilter, after| {
        let claims = bench.store.claims(&filter, after, 10).await.unwrap();
        claims.iter().map(|claim| claim.id).collect::<Vec<_>>()
    };
    assert_eq!(list(ClaimFilter::default(), None).await, [a.id, b.id]);
    assert_eq!(list(ClaimFilter::default(), Some(a.id)).await, [b.id]);
    assert_eq!(list(ClaimFilter { name: Some("a".into()), ..ClaimFilter::default() }, None).await, [a.id]);
    assert_eq!(list(ClaimFilter { pool: Some(pool.id), ..ClaimFilter::default() }, None).await, [a.id, b.id]);
    let containing = |text| ClaimFilter { containing: Some(prefix(text)), ..ClaimFilter::default() };
    assert_eq!(list(containing("10.9.0.9"), None).await, [a.id]);
    assert_eq!(list(containing("10.9.0.16/31"), None).await, []);
    assert_eq!(list(ClaimFilter { name: Some("b".into()), ..containing("10.9.0.9") }, None).await, []);
}

struct Ticking(AtomicI64);

impl Clock for Ticking {
    fn now(&self) -> Now {
        let second = self.0.fetch_add(1, Ordering::SeqCst);
        Now { mono: Mono(Duration::from_secs(second.unsigned_abs())), wall: at(second) }
    }
}

/// Many clients on one small pool, with a list of who has what beside it.
async fn many_clients_at_once_never_share_an_address_and_the_history_says_so_too(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/26", "10.9.1.0/26"], 1).await;
    let shutdown = CancellationToken::new();
    let clock = Arc::new(Ticking(AtomicI64::new(1)));
    let (addresses, run) = Addresses::new(bench.store.clone(), clock, shutdown.clone());
    let run = tokio::spawn(run);
    let held: Arc<Mutex<BTreeSet<Prefix>>> = Arc::default();
    let clients: Vec<_> = (0..16u32)
        .map(|client| {
            let (addresses, held) = (addresses.clone(), held.clone());
            tokio::spawn(async move {
                let mut mine: Vec<Claim> = Vec::new();
                let (mut claimed, mut refused, mut moved) = (0, 0, 0);
                for _ in 0..40 {
                    let wanted = match rand::random_range(0..3) {
                        0 => Wanted::Any,
                        1 => Wanted::Length(rand::random_range(28..=31)),
                        _ => {
                            let single =
                                Prefix::single([10, 9, rand::random_range(0..2), rand::random_range(0..64)].into());
                            Wanted::Prefix(single.unwrap().of_length(rand::random_range(30..=32)))
                        }
                    };
                    if mine.len() < 6 && rand::random_bool(0.6) {
                        match addresses.claim(named(wanted, &client.to_string()), "me".into()).await {
                            Ok(claim) => {
                                let mut held = held.lock().unwrap();
                                let twice = held.iter().find(|other| other.overlaps(claim.prefix));
                                assert!(twice.is_none(), "{} overlaps with {twice:?}", claim.prefix);
                                held.insert(claim.prefix);
                                mine.push(claim);
                                claimed += 1;
                            }
                            Err(Refused::Held { .. } | Refused::Exhausted { .. } | Refused::Resting(..)) => {
                                refused += 1
                            }
                            Err(other) => panic!("{other}"),
                        }
                    } else if !mine.is_empty() && rand::random_bool(0.3) {
                        let claim = &mut mine[0];
                        moved += 1;
                        let to = to_name(&format!("{client}-{moved}"));
                        *claim = addresses.hand_on(claim.id, Some(vec![claim.version]), to, "me".into()).await.unwrap();
                    } else if !mine.is_empty() {
                        let claim = mine.swap_remove(rand::random_range(0..mine.len()));
                        assert!(held.lock().unwrap().remove(&claim.prefix));
                        addresses.release(claim.id, None, "me".into()).await.unwrap();
                    }
                }
                (claimed + moved, refused, mine)
            })
        })
        .collect();
    let (mut claimed, mut refused, mut rest) = (0, 0, Vec::new());
    for client in clients {
        let (some, none, mine) = client.await.unwrap();
        (claimed, refused) = (claimed + some, refused + none);
        rest.extend(mine);
    }
    assert!(claimed > 100 && refused > 10, "{claimed} claimed, {refused} refused: a test of nothing");

    // What the database calls next is what the core would.
    let free: Vec<_> = bench.leaves(&pool).await;
    let free: Vec<_> = free.iter().filter(|leaf| leaf.state == State::Free).map(|leaf| leaf.prefix).collect();
    let mut tx = bench.store.begin().await.unwrap();
    for length in 24..=32u8 {
        let next = tx.next_free(pool.number, length + 96).await.unwrap().map(|leaf| leaf.prefix);
        assert_eq!(next, best_fit(free.iter().copied(), length), "/{length}");
    }
    drop(tx);

    for claim in rest {
        addresses.release(claim.id, None, "me".into()).await.unwrap();
    }
    shutdown.cancel();
    run.await.unwrap();
    assert!(matches!(addresses.claim(named(Wanted::Any, "x"), "me".into()).await, Err(Refused::Stopping)));
    let all = bench.store.history_of_all().await.unwrap();
    assert_eq!(all.len(), claimed);
    for (at, one) in all.iter().enumerate() {
        for other in all[at + 1..].iter().filter(|other| other.prefix.overlaps(one.prefix)) {
            let apart = one.until.unwrap() <= other.since || other.until.unwrap() <= one.since;
            assert!(apart, "{one:?} and {other:?} at once");
        }
    }
    let mut tx = bench.store.begin().await.unwrap();
    tx.remove_pool(at(100_000), &pool).await.unwrap();
}

/// What is measured has to be what claims would have made.
async fn a_pool_that_was_filled_in_bulk_is_as_one_that_was_filled_by_claims(on: On) {
    let bench = Bench::new(on).await;
    let pool = pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 0).await;
    assert_eq!(bench.store.fill(&pool, 31, 40).await.unwrap(), 128);
    let bulk = bench.leaves(&pool).await;
    let claims = bench.store.claims(&ClaimFilter { pool: Some(pool.id), ..ClaimFilter::default() }, None, 200).await;
    let held: Vec<_> = claims.unwrap().iter().map(|claim| (claim.prefix, State::Claimed)).collect();
    let claimed: Vec<_> =
        bulk.iter().map(|leaf| (leaf.prefix, leaf.state)).filter(|leaf| leaf.1 != State::Free).collect();
    assert_eq!((held.len(), &held), (125, &claimed));
    bench.store.thin(&pool, 31, 4).await.unwrap();
    assert_eq!(bench.usage(&pool).await.free, 64);
    // Only what fits into the holes.
    for _ in 0..32 {
        bench.claim(1, Wanted::Length(31), "x").await.unwrap();
    }
    assert!(matches!(bench.claim(1, Wanted::Any, "x").await, Err(Refused::Exhausted { .. })));
    // And all of it is one block again when everything is released.
    for claim in bench.store.claims(&ClaimFilter::default(), None, 200).await.unwrap() {
        bench.release(2, &claim).await.unwrap();
    }
    assert_eq!(bench.leaves(&pool).await.len(), 1);
}

/// A claim that waits, as of a request that a record is kept of.
async fn waiting(new: NewClaim) -> Job {
    let record = Record {
        id: Uuid::nil(),
        at: at(1),
        by: "ann".into(),
        token: Uuid::nil(),
        from: None,
        through: String::new(),
        action: match &new.holder {
            NewHolder::Name(name) | NewHolder::Machine(name, _) => name.clone(),
        },
        request: Uuid::now_v7(),
        changes: Vec::new(),
    };
    let request = Asked { record }.scope(async { Present::of_this_task() }).await;
    Job { what: What::Claim(Box::new(new)), by: "me".into(), request, answer: oneshot::channel().0 }
}

/// Done together or one after the other, what is claimed and what is left are the same, and each
/// request has the record of its own claim.
async fn claims_that_are_done_together_are_as_if_done_one_after_the_other(on: On) {
    let (bench, one_by_one) = (Bench::new(on).await, Bench::new(on).await);
    let mut pools = Vec::new();
    for bench in [&bench, &one_by_one] {
        let pool = pool(bench, "10.0.0.0/8", &["10.9.0.0/25", "10.9.1.0/26"], 0).await;
        for wanted in [Wanted::Any, Wanted::Length(29), this("10.9.0.64/30")] {
            bench.claim(0, wanted, "before").await.unwrap();
        }
        pools.push(pool);
    }
    // In the order in which they are done, which is that of their lengths: 38 of them.
    let lengths = [30; 5].into_iter().chain([31; 32]).map(Wanted::Length).chain([this("10.9.1.60/30")]);
    let wishes: Vec<_> = lengths.enumerate().map(|(at, wanted)| named(wanted, &format!("web-{at}"))).collect();
    for (at, wish) in wishes.iter().enumerate() {
        one_by_one.claim(1, wish.wanted, &format!("web-{at}")).await.unwrap();
    }
    let (mut jobs, mut done) = (Vec::new(), Vec::new());
    for wish in wishes {
        jobs.push(waiting(wish).await);
    }
    together(&bench.store, at(1), &jobs, &mut done).await.unwrap();

    assert_eq!(bench.leaves(&pools[0]).await, one_by_one.leaves(&pools[1]).await);
    let all = ClaimFilter::default();
    let expected = one_by_one.store.claims(&all, None, 100).await.unwrap();
    let expected: Vec<_> = expected.into_iter().skip(3).map(|claim| (claim.prefix, claim.holder)).collect();
    let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
    let got: Vec<_> = done.iter().map(|claim| (claim.prefix, claim.holder.clone())).collect();
    assert_eq!(got, expected);
    for claim in &done {
        assert_eq!(&bench.store.claim(claim.id).await.unwrap(), claim);
    }
    bench.store.link_records().await.unwrap();
    let records = bench.store.records(None, &AuditFilter::default(), 100).await.unwrap();
    assert_eq!(records.len(), done.len());
    for claim in done {
        let of = |linked: &&Linked| linked.record.action == claim.holder.name;
        let changes = &records.iter().find(of).unwrap().record.changes;
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!((&changes[0].id, changes[0].before.is_none()), (&claim.id.to_string(), true));
    }

    // One more than there is room for: all but that are done, and that is refused.
    let mut jobs = Vec::new();
    for at in 0..30 {
        jobs.push(waiting(named(Wanted::Length(29), &format!("late-{at}"))).await);
    }
    let mut done = Vec::new();
    together(&bench.store, at(2), &jobs, &mut done).await.unwrap();
    let room = done.iter().take_while(|result| result.is_ok()).count();
    assert!(room > 0 && done[room..].iter().all(|result| matches!(result, Err(Refused::Exhausted { .. }))));
    bench.leaves(&pools[0]).await;
}

/// As several controllers on one database: each with its own queue and its own connections.
async fn several_queues_on_one_database_never_share_an_address(on: On) {
    let bench = Arc::new(Bench::new(on).await);
    pool(&bench, "10.0.0.0/8", &["10.9.0.0/24"], 0).await;
    let mut clients = Vec::new();
    for number in 0..4 {
        let store = bench.ground.store().await;
        clients.extend((0..2).map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                let (mut held, mut released) = (Vec::new(), 0);
                for turn in 0..24 {
                    let mut tx = store.begin().await.unwrap();
                    let name = format!("{number} {client} {turn}");
                    let wish = named(Wanted::Length(rand::random_range(29..=32)), &name);
                    match tx.hand_out(at(turn), &wish, "me").await {
                        Ok(claim) => held.push(claim),
                        Err(Refused::Exhausted { .. }) if !held.is_empty() => {
                            let claim: Claim = held.swap_remove(0);
                            tx.take_back(at(turn), claim.id, "me").await.unwrap();
                            released += 1;
                        }
                        Err(Refused::Exhausted { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                    tx.commit().await.unwrap();
                }
                (held, released)
            })
        }));
    }
    let (mut held, mut released) = (Vec::new(), 0);
    for client in clients {
        let (mine, given_back) = client.await.unwrap();
        held.extend(mine);
        released += given_back;
    }
    assert!(held.len() > 30 && released > 0, "{} held, {released} released: a test of nothing", held.len());
    for (at, one) in held.iter().enumerate() {
        let twice = held[at + 1..].iter().find(|other| other.prefix.overlaps(one.prefix));
        assert!(twice.is_none(), "{one:?} and {twice:?}");
    }
}

on_both! {
    a_projects_blocks_grow_with_its_claims_hold_no_others_and_go_back,
    blocks_and_addresses_inside_them_are_never_both_handed_out,
    all_that_was_released_in_any_order_is_one_block_again_but_not_with_its_neighbours,
    what_was_released_rests_and_what_was_reserved_does_not,
    space_that_rests_in_parts_is_one_block_once_all_of_it_rested,
    more_than_one_transaction_frees_is_freed_by_and_by,
    what_was_not_committed_or_was_gone_back_on_left_nothing,
    a_claim_that_moves_is_never_nobodys_and_the_history_says_whose_it_was_when,
    whatever_moves_everybodys_time_is_as_a_list_says,
    who_held_an_address_is_known_for_every_time_also_by_block_and_after_the_clock_went_back,
    aggregates_and_pools_of_a_vrf_are_disjoint_and_go_when_they_are_empty,
    a_machine_gets_addresses_of_its_racks_pools_for_its_own_cards_and_is_not_forgotten_with_them,
    an_address_is_announced_by_its_holder_or_in_as_many_places_as_its_pool_is_for,
    a_list_of_claims_is_narrowed_and_paged,
    a_pool_that_was_filled_in_bulk_is_as_one_that_was_filled_by_claims,
    claims_that_are_done_together_are_as_if_done_one_after_the_other,
}

on_both! { in parallel:
    several_queues_on_one_database_never_share_an_address,
    many_clients_at_once_never_share_an_address_and_the_history_says_so_too,
}
