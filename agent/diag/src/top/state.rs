//! What `rackhand-diag top` shows, and what keys and news make of it: a core without terminal or socket.
//!
//! Invariants:
//! - Nothing that is typed reaches a machine before somebody has asked to type, and what is typed then goes by
//!   the rules of `rackhand-diag console`.
//! - A console that was left tells nothing any more: what comes of it late carries another number.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
};

use jiff::{SignedDuration, Timestamp};
use rackhand_common::{
    event::Event,
    explanation::{Explanation, Stands},
    health,
    id::MachineId,
    terminal::{self, Keys, Terminal},
    wire::{FromConsole, MachineView, NodeView, ToConsole},
};

use super::{
    emulator::{COLUMNS, Emulator},
    keys::{Key, Keyboard},
};

/// How long a lamp is lit.
const LAMP: u32 = 15 * 60;

/// How long something that was said stays in the last line.
const SAID: SignedDuration = SignedDuration::from_secs(10);

/// The longest filter, in letters.
const FILTER: usize = 40;

/// How far a console is moved sideways at once, in columns.
const SIDEWAYS: u16 = 20;

/// What happens to it.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// Bytes from the keyboard.
    Typed(Vec<u8>),
    /// Nothing was typed for a moment.
    Quiet,
    /// How the rack stands.
    Rack(Box<Rack>),
    /// The latest events of a machine, oldest first.
    Timeline(MachineId, Vec<Event>),
    /// The agent does not answer, and why.
    Silent(String),
    /// A lamp was to be lit for so many seconds, or put out: whether it was.
    Lamp(String, u32, Result<(), String>),
    /// A console of this number tells something.
    Console(u64, FromConsole),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Have the timeline of this machine told, and no other's.
    Follow(Option<MachineId>),
    /// Open a machine's console, under a number.
    Open(u64, MachineId),
    /// Close the console.
    Close,
    /// Say this to the console.
    Say(ToConsole),
    /// Light a machine's lamp for so many seconds, or put it out; its name is for people.
    Identify(MachineId, String, u32),
    /// Draw all of it anew.
    Refresh,
    /// Leave.
    Quit,
}

/// How a rack stands, as its agent told it.
#[derive(Clone, Debug)]
pub(crate) struct Rack {
    pub(crate) node: NodeView,
    pub(crate) machines: Vec<Row>,
}

/// A machine of it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) view: MachineView,
    /// What `why` says; absent when it came between two questions.
    pub(crate) explanation: Option<Explanation>,
    /// What the rules make of what its BMC tells; absent when no BMC of it is read.
    pub(crate) health: Option<health::State>,
}

impl Row {
    /// What people call it.
    pub(crate) fn name(&self) -> String {
        self.view.name.clone().unwrap_or_else(|| self.view.id.to_string())
    }

    pub(crate) fn stands(&self) -> Option<Stands> {
        self.explanation.as_ref().map(|explanation| explanation.stands)
    }

    /// Since when it is as it is.
    pub(crate) fn since(&self) -> Option<Timestamp> {
        self.explanation.as_ref().and_then(|explanation| explanation.since).or(self.view.since)
    }

    fn is_meant_by(&self, filter: &str) -> bool {
        let Self { view, explanation, health } = self;
        let mut words = vec![self.name(), view.id.to_string(), view.latest.clone()];
        words.extend(view.mac.map(|mac| mac.to_string()));
        words.extend(view.address.map(|address| address.to_string()));
        words.extend(health.map(|health| health.word().to_owned()));
        words.extend(explanation.iter().flat_map(|told| [told.stands.word().to_owned(), told.verdict.clone()]));
        let wanted = filter.to_lowercase();
        words.iter().any(|word| word.to_lowercase().contains(&wanted))
    }
}

/// In which order machines are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Those that need somebody most.
    #[default]
    Worst,
    /// Those that have been as they are for longest.
    Longest,
    /// Those whose sensors say the worst.
    Health,
    /// By name.
    Name,
}

impl Sort {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Worst => "worst first",
            Self::Longest => "longest first",
            Self::Health => "health",
            Self::Name => "name",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Worst => Self::Longest,
            Self::Longest => Self::Health,
            Self::Health => Self::Name,
            Self::Name => Self::Worst,
        }
    }
}

/// A part of a machine's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pane {
    #[default]
    Why,
    Timeline,
    Console,
}

impl Pane {
    fn next(self) -> Self {
        match self {
            Self::Why => Self::Timeline,
            Self::Timeline => Self::Console,
            Self::Console => Self::Why,
        }
    }
}

/// What lies over everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Help,
    Node,
}

/// A machine's page.
pub(crate) struct Page {
    pub(crate) machine: MachineId,
    /// The pane that keys move in; the only one where there is no room for others, or when it is large.
    pub(crate) pane: Pane,
    pub(crate) is_large: bool,
    /// How many lines the verdict is moved down, and the timeline and the console up. Whoever draws them brings
    /// that down to what there is.
    pub(crate) scrolled: [Cell<usize>; 3],
    /// The console's first column.
    pub(crate) left: u16,
    pub(crate) events: Vec<Event>,
    pub(crate) console: Console,
}

/// A console that is watched.
pub(crate) struct Console {
    number: u64,
    terminal: Terminal,
    /// Behind a cell, as looking at lines that went by moves in it.
    pub(crate) emulator: RefCell<Emulator>,
    /// Who has the keyboard, and whether that is us.
    pub(crate) writer: (Option<String>, bool),
    /// Why it is over.
    pub(crate) ended: Option<String>,
    /// Whether keys go to the machine.
    pub(crate) is_typing: bool,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Top {
    pub(crate) rack: Option<Rack>,
    /// Since when the agent does not answer, and why.
    pub(crate) silent: Option<(Timestamp, String)>,
    pub(crate) sort: Sort,
    pub(crate) filter: String,
    /// Whether keys go to the filter.
    pub(crate) is_filtering: bool,
    pub(crate) page: Option<Page>,
    pub(crate) over: Option<Over>,
    pub(crate) in_colour: bool,
    selected: Option<MachineId>,
    said: Option<(Timestamp, String)>,
    keyboard: Keyboard,
    consoles: u64,
    /// Whether a BMC was asked for its lamp and has not answered yet: one at a time.
    is_lamp_asked: bool,
}

impl Top {
    pub(crate) fn new(in_colour: bool) -> Self {
        Self { in_colour, ..Self::default() }
    }

    /// Takes in what happened; what is to be done for it, in this order.
    pub(crate) fn on(&mut self, input: Input, now: Timestamp) -> Vec<Act> {
        match input {
            Input::Typed(bytes) => return self.typed(&bytes, now),
            Input::Quiet => return self.keyboard.quiet().map_or_else(Vec::new, |key| self.key(key, now)),
            Input::Rack(rack) => {
                self.rack = Some(*rack);
                self.silent = None;
                // So that the list is not sorted away under somebody's hand.
                self.selected = self.chosen().map(|row| row.view.id);
            }
            Input::Timeline(machine, events) => {
                if let Some(page) = self.page.as_mut().filter(|page| page.machine == machine) {
                    page.events = events;
                }
            }
            Input::Silent(why) => {
                let since = self.silent.take().map_or(now, |(since, _)| since);
                self.silent = Some((since, why));
            }
            Input::Lamp(machine, seconds, done) => {
                self.is_lamp_asked = false;
                self.say(
                    now,
                    match (done, seconds) {
                        (Err(why), _) => format!("the lamp of {machine}: {why}"),
                        (Ok(()), 0) => format!("the lamp of {machine} is off"),
                        (Ok(()), _) => format!("the lamp of {machine} is lit for {} min; I puts it out", seconds / 60),
                    },
                );
            }
            Input::Console(number, told) => {
                if let Some(page) = self.page.as_mut().filter(|page| page.console.number == number) {
                    page.console.told(told);
                }
            }
        }
        Vec::new()
    }

    /// Whether a key is only known once nothing comes behind it.
    pub(crate) fn is_waiting_for_a_key(&self) -> bool {
        self.keyboard.is_waiting()
    }

    /// The machines that are listed, in order.
    pub(crate) fn rows(&self) -> Vec<&Row> {
        let all = self.rack.iter().flat_map(|rack| &rack.machines);
        let mut rows: Vec<_> = all.filter(|row| row.is_meant_by(&self.filter)).collect();
        rows.sort_by_cached_key(|row| row.name());
        match self.sort {
            Sort::Worst => rows.sort_by_key(|row| Reverse(row.stands())),
            Sort::Longest => rows.sort_by_key(|row| row.since().unwrap_or(Timestamp::MAX)),
            Sort::Health => rows.sort_by_key(|row| Reverse(row.health)),
            Sort::Name => {}
        }
        rows
    }

    /// The one that keys are about.
    pub(crate) fn chosen(&self) -> Option<&Row> {
        let rows = self.rows();
        rows.iter().find(|row| Some(row.view.id) == self.selected).or(rows.first()).copied()
    }

    /// The one whose page is open, wherever the list has it.
    pub(crate) fn open(&self) -> Option<&Row> {
        let machine = self.page.as_ref()?.machine;
        self.rack.as_ref()?.machines.iter().find(|row| row.view.id == machine)
    }

    /// What was said lately.
    pub(crate) fn said(&self, now: Timestamp) -> Option<&str> {
        let (at, words) = self.said.as_ref()?;
        (now.duration_since(*at).abs() < SAID).then_some(words)
    }

    pub(crate) fn is_typing(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.console.is_typing)
    }

    fn say(&mut self, now: Timestamp, words: String) {
        self.said = Some((now, words));
    }

    fn typed(&mut self, bytes: &[u8], now: Timestamp) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut rest = bytes;
        while let [byte, behind @ ..] = rest {
            if let Some(page) = self.page.as_mut().filter(|page| page.console.is_typing) {
                acts.extend(page.console.typed(rest));
                break;
            }
            for key in self.keyboard.take(*byte) {
                acts.extend(self.key(key, now));
            }
            rest = behind;
        }
        acts
    }

    fn key(&mut self, key: Key, now: Timestamp) -> Vec<Act> {
        if key == Key::Interrupt {
            return vec![Act::Quit];
        }
        if key == Key::Refresh {
            return vec![Act::Refresh];
        }
        if self.is_filtering {
            self.filter_key(key);
            return Vec::new();
        }
        // Any key takes it away; but who wants to leave, leaves.
        if self.over.take().is_some() && key != Key::Letter('q') {
            return Vec::new();
        }
        match key {
            Key::Letter('q') => return vec![Act::Quit],
            Key::Letter('?') => self.over = Some(Over::Help),
            Key::Letter('n') => self.over = Some(Over::Node),
            Key::Letter('i') => return self.identify(LAMP, now),
            Key::Letter('I') => return self.identify(0, now),
            _ if self.page.is_some() => return self.page_key(key, now),
            _ => return self.list_key(key),
        }
        Vec::new()
    }

    fn filter_key(&mut self, key: Key) {
        match key {
            Key::Letter(letter) if self.filter.chars().count() < FILTER => self.filter.push(letter),
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Enter => self.is_filtering = false,
            Key::Escape => {
                self.is_filtering = false;
                self.filter.clear();
            }
            _ => {}
        }
    }

    fn list_key(&mut self, key: Key) -> Vec<Act> {
        match key {
            Key::Letter('k') | Key::Up => self.choose(|at, _| at.saturating_sub(1)),
            Key::Letter('j') | Key::Down => self.choose(|at, _| at + 1),
            Key::PageUp => self.choose(|at, _| at.saturating_sub(10)),
            Key::PageDown => self.choose(|at, _| at + 10),
            Key::Letter('g') | Key::Home => self.choose(|_, _| 0),
            Key::Letter('G') | Key::End => self.choose(|_, last| last),
            Key::Letter('s') => self.sort = self.sort.next(),
            Key::Letter('/') => self.is_filtering = true,
            Key::Escape => self.filter.clear(),
            Key::Enter | Key::Right => {
                return self.chosen().map(|row| row.view.id).map_or_else(Vec::new, |machine| self.open_page(machine));
            }
            _ => {}
        }
        Vec::new()
    }

    /// Chooses another machine, from the place of the present one and the last there is.
    fn choose(&mut self, other: impl FnOnce(usize, usize) -> usize) {
        let chosen = self.chosen().map(|row| row.view.id);
        let ids: Vec<_> = self.rows().iter().map(|row| row.view.id).collect();
        let Some(last) = ids.len().checked_sub(1) else { return };
        let at = ids.iter().position(|id| Some(*id) == chosen).unwrap_or(0);
        self.selected = Some(ids[other(at, last).min(last)]);
    }

    fn open_page(&mut self, machine: MachineId) -> Vec<Act> {
        self.selected = Some(machine);
        let console = self.fresh_console();
        let number = console.number;
        self.page = Some(Page {
            machine,
            pane: Pane::Why,
            is_large: false,
            scrolled: Default::default(),
            left: 0,
            events: Vec::new(),
            console,
        });
        vec![Act::Follow(Some(machine)), Act::Open(number, machine)]
    }

    fn fresh_console(&mut self) -> Console {
        self.consoles += 1;
        Console {
            number: self.consoles,
            terminal: Terminal::new(Keys::Keyboard, false),
            emulator: RefCell::default(),
            writer: (None, false),
            ended: None,
            is_typing: false,
        }
    }

    fn page_key(&mut self, key: Key, now: Timestamp) -> Vec<Act> {
        if key == Key::Letter('c') {
            let console = self.fresh_console();
            let Some(page) = self.page.as_mut().filter(|page| page.console.ended.is_some()) else { return Vec::new() };
            page.console = console;
            return vec![Act::Close, Act::Open(page.console.number, page.machine)];
        }
        let Some(page) = &mut self.page else { return Vec::new() };
        match key {
            Key::Letter('k') | Key::Up => page.up(1),
            Key::Letter('j') | Key::Down => page.down(1),
            Key::PageUp => page.up(10),
            Key::PageDown => page.down(10),
            Key::Home | Key::Letter('g') => page.up(usize::MAX),
            Key::End | Key::Letter('G') => page.down(usize::MAX),
            Key::Left => page.left = page.left.saturating_sub(SIDEWAYS),
            Key::Right => page.left = (page.left + SIDEWAYS).min(COLUMNS - SIDEWAYS),
            Key::Tab => page.pane = page.pane.next(),
            Key::Letter('z') => page.is_large = !page.is_large,
            Key::Letter('w') if page.console.ended.is_none() => {
                page.pane = Pane::Console;
                page.scrolled[Pane::Console as usize].set(0);
                page.console.is_typing = true;
                self.say(now, "what you type goes to the machine: at the beginning of a line ~. ends that".to_owned());
            }
            Key::Letter('w') => self.say(now, "its console is not open; c opens it".to_owned()),
            Key::Escape | Key::Backspace => {
                self.page = None;
                return vec![Act::Close, Act::Follow(None)];
            }
            _ => {}
        }
        Vec::new()
    }

    fn identify(&mut self, seconds: u32, now: Timestamp) -> Vec<Act> {
        let row = if self.page.is_some() { self.open() } else { self.chosen() };
        let Some((id, name)) = row.map(|row| (row.view.id, row.name())).filter(|_| !self.is_lamp_asked) else {
            return Vec::new();
        };
        self.is_lamp_asked = true;
        self.say(now, format!("the BMC of {name} is asked"));
        vec![Act::Identify(id, name, seconds)]
    }
}

impl Page {
    fn up(&self, lines: usize) {
        self.scroll(self.pane != Pane::Why, lines);
    }

    fn down(&self, lines: usize) {
        self.scroll(self.pane == Pane::Why, lines);
    }

    /// A verdict begins at its first line and is moved from there; the others end at their last.
    fn scroll(&self, away: bool, lines: usize) {
        let at = &self.scrolled[self.pane as usize];
        at.set(if away { at.get().saturating_add(lines) } else { at.get().saturating_sub(lines) });
    }
}

impl Console {
    fn told(&mut self, told: FromConsole) {
        let emulator = self.emulator.get_mut();
        match told {
            FromConsole::Printed(bytes) => emulator.print(&bytes),
            FromConsole::Writer { who, is_you } => {
                self.writer = (who.clone(), is_you);
                // While somebody types, what else is said of the keyboard stands between what is printed.
                if let Some(shown) = self.terminal.writer(who, is_you).filter(|_| self.is_typing) {
                    emulator.print(shown.as_bytes());
                }
            }
            FromConsole::Lost(bytes) => {
                emulator.print(terminal::notice(&format!("{bytes} bytes are missing")).as_bytes());
            }
            FromConsole::Ended(why) => {
                self.ended = Some(why);
                self.is_typing = false;
            }
        }
    }

    fn typed(&mut self, bytes: &[u8]) -> Vec<Act> {
        let mut acts = Vec::new();
        for act in self.terminal.typed(bytes) {
            match act {
                terminal::Act::Say(said) => acts.push(Act::Say(said)),
                terminal::Act::Show(text) => self.emulator.get_mut().print(text.as_bytes()),
                terminal::Act::Leave => {
                    self.is_typing = false;
                    if self.writer.1 {
                        acts.push(Act::Say(ToConsole::Give));
                    }
                    // So that the next time begins at the beginning of a line, too.
                    let mut terminal = Terminal::new(Keys::Keyboard, false);
                    terminal.writer(self.writer.0.clone(), self.writer.1);
                    self.terminal = terminal;
                    break;
                }
            }
        }
        acts
    }
}
