//! What somebody sees and does, on screens that exist in memory.

use expect_test::{Expect, expect};
use jiff::Timestamp;
use proptest::prelude::*;
use rackhand_common::{
    event::{Event, NodeHealth, Stage, What},
    explanation::{Explanation, Stands},
    health,
    id::{AgentId, MachineId, RackId},
    machine::Power,
    wire::{FromConsole, MachineView, NodeView, ToConsole},
};
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{
    state::{Act, Input, Rack, Row, Top},
    view,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn id(number: u8) -> MachineId {
    MachineId(format!("018bcfe5-6800-7000-8000-0000000000{number:02}").parse().unwrap())
}

fn row(number: u8, stands: Stands, verdict: &str, since: i64, health: Option<health::State>) -> Row {
    let name = format!("web-{number}");
    let view = MachineView {
        id: id(number),
        name: Some(name.clone()),
        mac: Some(format!("52:54:00:12:34:{number:02}").parse().unwrap()),
        address: Some(format!("10.77.0.{number}").parse().unwrap()),
        power: (number != 3).then_some(if number == 2 { Power::Off } else { Power::On }),
        installer: false,
        latest: "powered on".into(),
        since: Some(at(since)),
    };
    let (part, next) = match stands {
        Stands::Faulty => {
            (Some("replace the fan FAN2".into()), vec!["`rackhand-diag identify` lights the lamp".into()])
        }
        _ => (None, Vec::new()),
    };
    let explanation = Explanation {
        machine: name,
        stands,
        verdict: verdict.into(),
        since: Some(at(since)),
        part,
        next,
        because: Vec::new(),
        also: Vec::new(),
    };
    Row { view, explanation: Some(explanation), health }
}

fn rack() -> Input {
    let node = NodeView {
        version: "0.1.0".into(),
        agent: AgentId(id(90).0),
        rack: RackId(id(91).0),
        rack_name: Some("r1".into()),
        uplink: "not connected for 5 min".into(),
        revision: 7,
        spooled: 3,
        certificate_until: at(40 * 3600),
        boot_heard: Some(2),
        health: Some(NodeHealth { load: 105, memory: (1 << 30, 4 << 30), disk: (1 << 30, 100 << 30), uptime: 90_000 }),
    };
    let machines = vec![
        row(1, Stands::Well, "Nothing that this node knows speaks against it.", -9000, Some(health::State::Ok)),
        row(
            2,
            Stands::Faulty,
            "FAN2 is broken or about to break: 0 rpm, at least 500 rpm.",
            -250,
            Some(health::State::Critical),
        ),
        row(3, Stands::Busy, "It writes its image: 40 %.", -30, None),
    ];
    Input::Rack(Box::new(Rack { node, machines }))
}

fn timeline() -> Input {
    let event = |second, what| Event { at: at(second), machine: Some(id(2)), what };
    Input::Timeline(
        id(2),
        vec![
            event(-60, What::Stage(Stage::PoweredOn)),
            event(-41, What::Stage(Stage::Installer)),
            event(-3, What::Lost),
        ],
    )
}

fn keys(text: &str) -> Input {
    Input::Typed(text.as_bytes().to_vec())
}

fn prints(number: u64, text: &str) -> Input {
    Input::Console(number, FromConsole::Printed(text.as_bytes().to_vec()))
}

fn drawn(top: &Top, width: u16, height: u16) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, top, at(0))).unwrap();
    terminal.backend().clone()
}

fn screen(top: &Top, width: u16, height: u16) -> String {
    let backend = drawn(top, width, height);
    let buffer = backend.buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned() + "\n";
    (0..height).map(line).collect()
}

/// What is seen on a screen of this size after all this, and what was to be done.
fn check(width: u16, height: u16, inputs: impl IntoIterator<Item = Input>, expected: Expect) -> Vec<Act> {
    let mut top = Top::new(false);
    let acts = inputs.into_iter().flat_map(|input| top.on(input, at(0))).collect();
    expected.assert_eq(&screen(&top, width, height));
    acts
}

#[test]
fn a_narrow_screen_has_the_machines_that_need_somebody_first() {
    check(
        40,
        12,
        [rack()],
        expect![[r#"
        r1  node ok; controller: not connected f
        3 machines: 1 faulty, 1 busy, 1 well; wo
        MACHINE  STATE     WHY
        >web-2   FAULTY    FAN2 is broken or abo
         web-3   busy      It writes its image:
         web-1   well      Nothing that this nod





         ? help  Enter open  / filter  s sort  i
    "#]],
    );
}

#[test]
fn a_wide_one_has_all_of_each_and_the_verdict_on_the_chosen_one() {
    check(
        110,
        26,
        [rack()],
        expect![[r#"
        r1  node ok; controller: not connected for 5 min
        3 machines: 1 faulty, 1 busy, 1 well; worst first
        MACHINE  STATE     POWER  HEALTH    SINCE       WHY
        >web-2   FAULTY    off    critical  4 min 10 s  FAN2 is broken or about to break: 0 rpm, at least 500 rpm.
         web-3   busy      ?      -         30 s        It writes its image: 40 %.
         web-1   well      on     ok        2 h 30 min  Nothing that this node knows speaks against it.












        ┌ web-2 ──────────────────────────────────────────────────────────────────────────────────────────────────────
        │web-2 is FAULTY, since 4 min 10 s ago
        │
        │  FAN2 is broken or about to break: 0 rpm, at least 500 rpm.
        │
        │  Part: replace the fan FAN2
        │
         ? help  Enter open  / filter  s sort  i lamp  q leave
    "#]],
    );
}

#[test]
fn a_page_has_why_and_the_start_and_the_console_beside_them() {
    let acts = check(
        130,
        26,
        [rack(), keys("\r"), timeline(), prints(1, "\x1b[1mBIOS\x1b[0m\r\n\x1b]0;x\x07login: ")],
        expect![[r#"
            r1  node ok; controller: not connected for 5 min
            3 machines: 1 faulty, 1 busy, 1 well; worst first
             why · web-2 · power off ───────────────────────┌ console · read only; w types ───────────────────────────────────────────────────
            web-2 is FAULTY, since 4 min 10 s ago           │BIOS
                                                            │login:
              FAN2 is broken or about to break: 0 rpm, at   │
              least 500 rpm.                                │
                                                            │
              Part: replace the fan FAN2                    │
                                                            │
            What to do:                                     │
              - `rackhand-diag identify` lights the lamp    │
                                                            │
             timeline ──────────────────────────────────────│
                 +0.0 s  powered on                         │
                +19.0 s  installer connected                │
                +57.0 s  installer no longer heard of       │
                                                            │
                                                            │
                                                            │
                                                            │
                                                            │
                                                            │
                                                            │
                                                            │
             ? help  Esc back  Tab pane  w type  i lamp  q leave
        "#]],
    );
    assert_eq!(acts, [Act::Follow(Some(id(2))), Act::Open(1, id(2))]);
}

#[test]
fn where_there_is_no_room_panes_take_turns() {
    let ended = Input::Console(1, FromConsole::Ended("nobody said how its BMC is reached".into()));
    check(
        40,
        12,
        [rack(), keys("\r\t"), timeline()],
        expect![[r#"
        r1  node ok; controller: not connected f
        3 machines: 1 faulty, 1 busy, 1 well; wo
         timeline ──────────────────────────────
             +0.0 s  powered on
            +19.0 s  installer connected
            +57.0 s  installer no longer heard
            of




         ? help  Esc back  Tab pane  w type  i l
    "#]],
    );
    check(
        60,
        30,
        [rack(), keys("\r"), timeline(), prints(1, "login: "), ended],
        expect![[r#"
            r1  node ok; controller: not connected for 5 min
            3 machines: 1 faulty, 1 busy, 1 well; worst first
             why · web-2 · power off ─────┌ timeline ───────────────────
            web-2 is FAULTY, since 4 min  │     +0.0 s  powered on
            10 s ago                      │    +19.0 s  installer
                                          │    connected
              FAN2 is broken or about to  │    +57.0 s  installer no
              break: 0 rpm, at least 500  │    longer heard of
              rpm.                        │
                                          │
              Part: replace the fan FAN2  │
                                          │
            What to do:                   │
              - `rackhand-diag identify`  │
              lights the lamp             │
            ┌ console · ended; c opens it again ────────────────────────
            │login:
            │
            │
            │
            │
            │
            │
            │
            │
            │
            │
            │
            │[nobody said how its BMC is reached]
             ? help  Esc back  Tab pane  w type  i lamp  q leave
        "#]],
    );
}

#[test]
fn help_and_the_node_lie_over_it_until_a_key_is_pressed() {
    check(
        64,
        19,
        [rack(), keys("?")],
        expect![[r#"
        r1  node ok; controller: not connected for 5 min
        3 machines: 1 faulty, 1 busy, 1 well; worst first
        ┌ help · any key ───────────────────────────────────────────────
        │↑ ↓ PgUp PgDn, j k g G  move
        │Enter   a machine's page: why, its start, its console
        │Esc     back to the list; there: no filter
        │/       filter: name, address, state, verdict
        │s       sort: worst, longest, health, name
        │i  I    light its lamp; put it out
        │n       the node itself
        │Tab     the next pane; keys move in it
        │z       that pane alone, and back
        │← →     move the console sideways
        │w       type to the machine; ~. ends that, ~? tells more
        │c       open a console again that has ended
        │Ctrl-L  draw all anew
        │q       leave (Ctrl-C, too)
        │
         ? help  Enter open  / filter  s sort  i lamp  q leave
    "#]],
    );
    let mut top = Top::new(false);
    for input in [rack(), keys("n")] {
        top.on(input, at(0));
    }
    assert!(screen(&top, 80, 24).contains("the agent's ends on"), "{}", screen(&top, 80, 24));
    assert_eq!(top.on(keys("\r"), at(0)), []);
    assert!(screen(&top, 80, 24).contains("MACHINE"));
}

#[test]
fn a_node_that_is_not_well_and_an_agent_that_is_silent_stand_in_the_first_line() {
    let first = |change: fn(&mut NodeView), silent: Option<&str>| {
        let Input::Rack(mut rack) = rack() else { unreachable!("it is one") };
        change(&mut rack.node);
        let mut top = Top::new(false);
        top.on(Input::Rack(rack), at(0));
        if let Some(why) = silent {
            top.on(Input::Silent(why.into()), at(-7));
        }
        screen(&top, 100, 12).lines().next().unwrap().to_owned()
    };
    assert_eq!(first(|_| {}, None), "r1  node ok; controller: not connected for 5 min");
    assert_eq!(
        first(|node| node.boot_heard = Some(90), None),
        "r1  node ERROR: boot: not heard for 1 min 30 s: no machine may boot"
    );
    let bad = first(
        |node| {
            node.certificate_until = at(-5);
            node.boot_heard = None;
        },
        None,
    );
    assert!(bad.ends_with("(and 1 more: n)"), "{bad}");
    assert_eq!(
        first(|_| {}, Some("it is gone")),
        "r1  THE AGENT DOES NOT ANSWER, what is shown is 7 s old: it is gone"
    );
}

#[test]
fn the_list_is_filtered_and_sorted_and_the_chosen_one_stays() {
    let names = |top: &Top| top.rows().iter().map(|row| row.name()).collect::<Vec<_>>();
    let mut top = Top::new(false);
    top.on(rack(), at(0));
    assert_eq!(names(&top), ["web-2", "web-3", "web-1"]);
    top.on(keys("jj"), at(0));
    for (key, order) in [
        ("s", ["web-1", "web-2", "web-3"]),
        ("s", ["web-2", "web-1", "web-3"]),
        ("s", ["web-1", "web-2", "web-3"]),
        ("s", ["web-2", "web-3", "web-1"]),
    ] {
        top.on(keys(key), at(0));
        assert_eq!(names(&top), order);
        assert_eq!(top.chosen().unwrap().name(), "web-1");
    }
    top.on(keys("/fan2"), at(0));
    assert_eq!((names(&top), top.chosen().unwrap().name()), (vec!["web-2".to_owned()], "web-2".to_owned()));
    // Its letters are no commands, and Enter ends it.
    top.on(keys("\x7fq\r"), at(0));
    assert!(names(&top).is_empty() && !top.is_filtering);
    assert_eq!(top.on(keys("\r"), at(0)), []);
    top.on(keys("\x1b"), at(0));
    top.on(Input::Quiet, at(0));
    assert_eq!(names(&top).len(), 3);
    top.on(keys("/10.77.0.3\r"), at(0));
    assert_eq!(names(&top), ["web-3"]);
}

#[test]
fn a_lamp_is_asked_for_once_and_what_its_bmc_says_is_told() {
    let mut top = Top::new(false);
    top.on(rack(), at(0));
    assert_eq!(top.on(keys("iii"), at(0)), [Act::Identify(id(2), "web-2".into(), 900)]);
    top.on(Input::Lamp("web-2".into(), 900, Ok(())), at(0));
    assert!(screen(&top, 80, 24).contains("the lamp of web-2 is lit for 15 min; I puts it out"));
    assert_eq!(top.on(keys("I"), at(0)), [Act::Identify(id(2), "web-2".into(), 0)]);
    top.on(Input::Lamp("web-2".into(), 0, Err("it does not answer".into())), at(0));
    assert_eq!(top.said(at(0)), Some("the lamp of web-2: it does not answer"));
    assert_eq!(top.said(at(60)), None);
}

#[test]
fn nothing_is_typed_to_a_machine_before_it_is_asked_for_nor_after() {
    let say = |text: &str| Act::Say(ToConsole::Typed(text.as_bytes().to_vec()));
    let mine = Input::Console(1, FromConsole::Writer { who: Some("ada".into()), is_you: true });
    let mut top = Top::new(false);
    for input in [rack(), keys("\r")] {
        top.on(input, at(0));
    }
    assert_eq!(top.on(keys("ls -la"), at(0)), []);
    // What stands behind the key in one piece is typed, and keys of ours are no more.
    assert_eq!(top.on(keys("wq\x1b[A\x03\r"), at(0)), [say("q\x1b[A\x03\r")]);
    top.on(mine, at(0));
    assert!(top.is_typing() && screen(&top, 130, 20).contains("you have the keyboard"));
    assert_eq!(top.on(keys("~.q"), at(0)), [Act::Say(ToConsole::Give)]);
    assert!(!top.is_typing());
    top.on(Input::Console(1, FromConsole::Writer { who: Some("bob".into()), is_you: false }), at(0));
    assert_eq!(top.on(keys("w"), at(0)), []);
    assert_eq!(top.on(keys("x\r"), at(0)), []);
    assert!(screen(&top, 130, 20).contains("bob has the keyboard; ~w takes it"), "{}", screen(&top, 130, 20));
    assert_eq!(top.on(keys("~w"), at(0)), [Act::Say(ToConsole::Take)]);
    // One that is over takes nothing, until it is opened again.
    top.on(Input::Console(1, FromConsole::Ended("gone".into())), at(0));
    assert_eq!(top.on(keys("w"), at(0)), []);
    assert!(!top.is_typing());
    assert_eq!(top.on(keys("c"), at(0)), [Act::Close, Act::Open(2, id(2))]);
    top.on(prints(1, "late"), at(0));
    assert!(!screen(&top, 130, 20).contains("late"));
    assert_eq!(top.on(keys("\x7fq"), at(0)), [Act::Close, Act::Follow(None), Act::Quit]);
}

#[test]
fn panes_are_moved_no_further_than_there_is_something() {
    let mut top = Top::new(false);
    for input in [rack(), keys("\r\t\t"), prints(1, &"line\r\n".repeat(50)), prints(1, "last")] {
        top.on(input, at(0));
    }
    let shows = |top: &Top, text: &str| screen(top, 60, 12).contains(text);
    assert!(shows(&top, "last"));
    top.on(keys("g"), at(0));
    assert!(!shows(&top, "last"));
    top.on(keys("\x1b[6~\x1b[6~\x1b[6~\x1b[6~"), at(0));
    assert!(!shows(&top, "last"));
    top.on(keys("\x1b[6~"), at(0));
    assert!(shows(&top, "last"));
    top.on(keys("\t"), at(0));
    for (key, is_first) in [("G", false), ("k", false), ("g", true)] {
        top.on(keys(key), at(0));
        assert_eq!(shows(&top, "web-2 is FAULTY"), is_first, "{key}");
    }
}

#[test]
fn colours_are_shown_only_where_they_are_wanted() {
    for in_colour in [true, false] {
        let mut top = Top::new(in_colour);
        for input in [rack(), keys("\r"), prints(1, "\x1b[31;44mred")] {
            top.on(input, at(0));
        }
        for page in 0..2 {
            let backend = drawn(&top, 130, 30);
            let cells = backend.buffer().content();
            let is_coloured = cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
            assert_eq!(is_coloured, in_colour, "page {page}");
            top.on(keys("\x7f"), at(0));
        }
    }
}

fn anything() -> impl Strategy<Value = Input> {
    let key = prop_oneof!["[ -~]{1,3}", "(\x1b\\[[A-F5-6]~?|\r|\t|\x7f|\x1b|z|w|~\\.|/)"];
    prop_oneof![
        6 => key.prop_map(|text| keys(&text)),
        1 => Just(Input::Quiet),
        1 => Just(rack()),
        1 => Just(timeline()),
        1 => "\\PC{0,30}".prop_map(Input::Silent),
        1 => (0..4_u64, any::<Vec<u8>>()).prop_map(|(number, bytes)| Input::Console(number, FromConsole::Printed(bytes))),
        1 => (0..4_u64, "\\PC{0,300}").prop_map(|(number, why)| Input::Console(number, FromConsole::Ended(why))),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_can_be_drawn_on_any_screen(
        inputs in proptest::collection::vec(anything(), 0..30), width in 1_u16..180, height in 1_u16..60
    ) {
        let mut top = Top::new(true);
        top.on(rack(), at(0));
        for input in inputs {
            top.on(input, at(0));
            let shown = screen(&top, width, height);
            prop_assert!(!shown.chars().any(|letter| letter.is_control() && letter != '\n'));
        }
    }
}
