use super::*;

use expect_test::{Expect, expect};
use proptest::prelude::*;

const HEADER: &str = "#!/bin/bash\n# name: memory\n# title: Memory keeps what is written\n# limit: 30m\n\
    # programs: stress-ng jq\n# destructive: no\n# alone: yes\n# part: a memory module\n# result: errors integer\n\
    # result: slots texts\n\nset -eu\n";

fn read(text: &str) -> String {
    match Script::parse(text) {
        Ok(Script { name, limit, programs, devices, destructive, alone, results, .. }) => {
            format!("{name} {limit:?} {programs:?} {devices:?} {destructive} {alone} {results:?}")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_header_is_read_to_its_first_other_line() {
    expect![[r#"memory 1800s ["stress-ng", "jq"] [] false true {"errors": Integer, "slots": Texts}"#]]
        .assert_eq(&read(HEADER));
    let check = |from: &str, to: &str, expected: Expect| expected.assert_eq(&read(&HEADER.replace(from, to)));
    check("# part: a memory module\n", "", expect!["its header has no `part`"]);
    check("# alone: yes", "# alone: no\n# alone: yes", expect!["its header has `alone` twice"]);
    check("errors", "slots", expect!["its header has `result: slots` twice"]);
    check("# part", "# parts", expect!["its header has a line `parts: a memory module`, which means nothing"]);
    check(
        "30m",
        "3h",
        expect!["its header has for `limit` the value `3h`: a time such as `90s` or `30m`, at most two hours"],
    );
    check(
        "30m",
        "121m",
        expect!["its header has for `limit` the value `121m`: a time such as `90s` or `30m`, at most two hours"],
    );
    check(
        "destructive: no",
        "destructive: maybe",
        expect!["its header has for `destructive` the value `maybe`: `yes` or `no`"],
    );
    check(
        "name: memory",
        "name: ../memory",
        expect!["its header has for `name` the value `../memory`: lower-case letters, digits and hyphens"],
    );
    check(
        "programs: stress-ng jq",
        "devices: gpu",
        expect!["its header has for `devices` the value `gpu`: `disk`, `nvme` or `nic`"],
    );
}

#[test]
fn every_script_of_this_repository_is_read_and_named_as_its_file() {
    let mut names = Vec::new();
    for text in SCRIPTS {
        let script = Script::parse(text).unwrap();
        assert!(text.starts_with("#!/bin/bash\n"), "{}", script.name);
        names.push(script.name);
    }
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../firmware-scripts/commission");
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".sh").map(str::to_owned))
        .collect();
    files.sort();
    assert_eq!(names, files);
}

fn ran(exit: Exit, output: &str, result: &str) -> Ran {
    Ran { exit, output: output.into(), result: result.into(), took: Duration::from_millis(1500) }
}

fn check(exit: Exit, output: &str, result: &str, expected: Expect) {
    let tested = Script::parse(HEADER).unwrap().judge(&ran(exit, output, result), Timestamp::UNIX_EPOCH);
    assert!(tested.is_sound(), "{tested:?}");
    expected.assert_eq(&tested.to_string());
}

#[test]
fn a_test_passes_only_if_everything_says_so() {
    let good = r#"{"errors": 0, "slots": ["A1"]}"#;
    check(Exit::Code(0), "fine\n", good, expect!["test memory passed"]);
    check(Exit::Code(0), "", "", expect!["test memory broken: it wrote no result"]);
    check(
        Exit::Code(0),
        "",
        "[]",
        expect![[
            r#"test memory broken: its result is no JSON object: invalid type: sequence, expected a map at line 1 column 0"#
        ]],
    );
    check(Exit::Code(0), "", r#"{"errors": 0}"#, expect!["test memory broken: its result has no `slots`"]);
    check(
        Exit::Code(0),
        "",
        r#"{"errors": "0", "slots": []}"#,
        expect!["test memory broken: its result has for `errors` another type"],
    );
    check(
        Exit::Code(0),
        "",
        r#"{"errors": 0, "slots": [], "more": 1}"#,
        expect!["test memory broken: its result has `more`, which it did not declare"],
    );
    check(
        Exit::Code(0),
        "",
        r#"{"errors": 2, "slots": [], "findings": ["A1: two errors"]}"#,
        expect!["test memory broken: it passed, and has findings"],
    );
    check(
        Exit::Code(1),
        "",
        r#"{"errors": 2, "slots": [], "findings": ["A1: two\u001b[2J errors", "B2"]}"#,
        expect!["test memory failed: A1: two[2J errors; B2"],
    );
    check(Exit::Code(1), "said\nwhy\n\n", good, expect!["test memory failed: why"]);
    check(Exit::Code(1), "", "", expect!["test memory broken: it wrote no result"]);
    check(Exit::Code(77), "no memory\n", "", expect!["test memory skipped: no memory"]);
    check(Exit::Code(2), "usage", good, expect!["test memory broken: it ended with 2: usage"]);
    check(Exit::Signal(9), "", good, expect!["test memory broken: it was ended by signal 9: "]);
    check(Exit::Limit, "still\n", good, expect!["test memory broken: it was not done within its limit: still"]);
}

#[test]
fn tests_that_may_run_beside_others_come_first_and_at_once() {
    let all: Vec<_> = scripts().iter().collect();
    let batches = batches(&all);
    assert_eq!(batches.concat().len(), all.len());
    assert!(batches[0].iter().all(|script| !script.alone) && batches[0].len() > 1);
    assert!(batches[1..].iter().all(|batch| batch.len() == 1 && batch[0].alone));
}

proptest! {
    #[test]
    fn no_header_makes_the_reader_fail(text in "(#!/bin/bash\n)?(# [a-z]{0,12}:? ?[ -~é]{0,40}\n){0,12}.*") {
        let _ = Script::parse(&text);
    }

    #[test]
    fn a_header_that_is_written_is_read(
        name in "[a-z0-9][a-z0-9-]{0,20}",
        title in "[A-Za-z][A-Za-z ,]{0,60}[a-z]",
        minutes in 1u64..=120,
        (destructive, alone) in any::<(bool, bool)>(),
        fields in proptest::collection::btree_map("[a-z][a-z_]{0,10}", 0usize..5, 0..5),
    ) {
        let yes = |yes| if yes { "yes" } else { "no" };
        let kinds = ["integer", "number", "boolean", "text", "texts"];
        prop_assume!(!fields.contains_key(FINDINGS));
        let declared: String = fields.iter().map(|(name, kind)| format!("# result: {name} {}\n", kinds[*kind])).collect();
        let text = format!(
            "#!/bin/bash\n# name: {name}\n# title: {title}\n# limit: {minutes}m\n# destructive: {}\n# alone: {}\n\
             # part: a part\n{declared}echo\n",
            yes(destructive), yes(alone),
        );
        let script = Script::parse(&text).unwrap();
        prop_assert_eq!((&script.name, &script.title), (&name, &title));
        prop_assert_eq!(script.limit, Duration::from_secs(60 * minutes));
        prop_assert_eq!((script.destructive, script.alone, script.results.len()), (destructive, alone, fields.len()));
    }

    /// Whatever a script says and writes: what is told of it is sound, and a pass is a pass in each way.
    #[test]
    fn what_is_told_is_sound_whatever_a_script_does(
        code in prop_oneof![Just(0), Just(1), Just(77), any::<i32>()],
        output in proptest::collection::vec(any::<u8>(), 0..6000),
        result in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "\\{\"errors\": [0-9]{1,3}, \"slots\": \\[\\](, \"findings\": \\[(\"[a-z]{0,5}\")?\\])?\\}".prop_map(String::into_bytes),
        ],
    ) {
        let script = Script::parse(HEADER).unwrap();
        let ran = Ran { exit: Exit::Code(code), output, result, took: Duration::from_secs(1) };
        let tested = script.judge(&ran, Timestamp::UNIX_EPOCH);
        prop_assert!(tested.is_sound(), "{:?}", tested);
        if tested.outcome == Outcome::Passed {
            prop_assert_eq!(code, 0);
            let value: Value = serde_json::from_slice(&ran.result).unwrap();
            prop_assert!(value["errors"].is_u64() && value["findings"].as_array().is_none_or(Vec::is_empty));
        } else {
            prop_assert!(!tested.reason.is_empty());
        }
    }
}
