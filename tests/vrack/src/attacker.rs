//! Hostile neighbours on the provisioning network: what a tenant who is root on one machine can
//! send, and what the machine beside it and the rack node must not notice; and somebody who
//! reaches the controller's ports. No QEMU: boot runs as it does on a node, with its intent on its
//! own disk and no agent; the two machines are network namespaces on the same bridge.
//!
//! Not here, because a flat LAN cannot prevent it: a neighbour that answers DHCP before us, takes
//! a machine's address by ARP, or uses a stolen ticket first. `docs/promises.md` says so.

mod client;
mod controller;
mod dhcp;
mod http;
mod intruder;
mod memory;
mod range;
mod telling;
mod tftp;
mod ticket;
pub(crate) mod wire;

use std::{fs, path::Path};

use anyhow::ensure;
use rackhand_common::pki;

use self::range::Range;
use crate::{
    facts::{self, Then},
    services::Service,
};

type Fact = fn(&mut Range) -> anyhow::Result<String>;

const FACTS: &[(&str, Fact)] = &[
    ("forged_release_and_decline_take_no_address_from_anyone", dhcp::forged_release_and_decline),
    ("broken_dhcp_messages_are_survived_also_across_a_restart", dhcp::broken_messages),
    ("tftp_gives_no_file_but_the_loaders", tftp::names),
    ("tftp_refuses_to_write_and_what_is_no_request", tftp::refusals),
    ("tftp_ignores_other_senders_and_repeated_acknowledgements", tftp::other_senders),
    ("forged_tftp_requests_keep_no_machine_from_its_loader", tftp::starvation),
    ("a_ticket_is_given_to_its_own_card_at_its_own_address", ticket::scraping),
    ("a_ticket_that_was_used_is_of_no_use_to_anyone_else", ticket::replay),
    ("guessed_tickets_are_refused_and_cost_nobody_a_session", ticket::guessing),
    ("asking_for_scripts_in_a_loop_costs_no_machine_its_ticket", ticket::flood),
    ("without_a_ticket_the_channel_says_nothing", ticket::no_session),
    ("forged_calls_home_and_metadata_requests_are_not_found", http::forged_calls),
    ("malformed_http_is_refused_and_survived", http::malformed),
    ("chunks_that_nobody_ordered_are_asked_of_nobody", http::made_up_chunks),
    ("garbage_on_the_installers_channel_is_survived", http::garbled_handshakes),
    ("half_open_http_requests_keep_nobody_out", http::half_open_requests),
    ("half_open_handshakes_keep_no_installer_out", http::half_open_handshakes),
    ("router_solicitations_are_not_amplified", dhcp::router_solicitations),
    ("a_starved_range_leaves_known_machines_theirs_and_comes_back_when_the_leases_are_over", dhcp::starvation),
    ("a_dhcp_flood_keeps_no_known_machine_from_booting", dhcp::flood),
    ("a_tftp_flood_keeps_no_known_machine_from_booting", tftp::flood),
    ("an_http_flood_keeps_no_known_machine_from_booting", http::flood),
    ("a_flood_of_the_channel_keeps_no_known_machine_from_booting", http::channel_flood),
    ("a_dhcpv6_flood_keeps_no_known_machine_from_booting", dhcp::dhcpv6_flood),
    ("declines_in_many_names_take_a_quarter_of_the_range_at_most", dhcp::many_declines),
    ("garbage_at_the_agents_port_keeps_neither_operator_nor_node_out", controller::garbage),
    ("forged_handshakes_at_the_agents_port_keep_neither_operator_nor_node_out", controller::forged_handshakes),
    ("half_open_handshakes_at_the_api_keep_no_operator_out", controller::half_open_handshakes),
    ("slow_requests_at_the_api_keep_no_operator_out", controller::slow_requests),
    ("no_process_leaves_its_memory_to_a_core_dump_or_to_its_user", memory::closed),
    ("a_machine_that_tells_what_it_can_fills_no_spool", telling::one),
    ("the_log_and_the_spool_of_all_this_are_bounded", bounded_traces),
    ("machines_that_tell_more_than_the_spool_takes_keep_no_known_machine_from_booting", telling::many),
];

/// Tries everything; ends with how many facts held.
pub(crate) fn tell(binaries: &Path, only: Option<&str>) -> anyhow::Result<()> {
    pki::install_crypto();
    let mut range = Range::build(binaries)?;
    let tally = facts::tell(
        &mut range,
        FACTS,
        |name| only.is_none_or(|only| name.contains(only)),
        |range, fact| {
            let before = range.usage(Service::Boot)?;
            let said = fact(range)?;
            range.unharmed(before)?;
            Ok(said)
        },
        |range| {
            range.restart()?;
            Ok(Then::GoOn)
        },
    )?;
    range.cut();
    if tally.all_held() {
        let _ = fs::remove_dir_all(&range.files.directory);
    } else {
        println!("the logs are in {}", range.files.directory.join("logs").display());
    }
    tally.end()
}

/// After everything above. The spool's bound is 50,000 events; most of what a machine does
/// again and again is told once.
fn bounded_traces(range: &mut Range) -> anyhow::Result<String> {
    let log = range.log()?;
    let lines = log.lines().count();
    let spool = fs::metadata(range.files.state(Service::Boot).join("events.redb"))?.len();
    let mut texts: Vec<&str> = log.lines().map(|line| line.split_once(' ').map_or(line, |(_, text)| text)).collect();
    texts.sort_unstable();
    ensure!(lines < 5_000, "{lines} lines of log; the first: {:#?}", &texts[..20]);
    ensure!(spool < 32 << 20, "the spool has {} MiB", spool >> 20);
    Ok(format!("{lines} lines of log, {} KiB of spool", spool >> 10))
}
