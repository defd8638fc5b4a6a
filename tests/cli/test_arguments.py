"""What the command takes: each argument is one that its verb reads."""

import argparse
import inspect

import pytest

from ifsq.cli import analyze, bench, doctor, evaluate, features, generator, interop, main, studio, teacher, tokenizer
from ifsq.cli import parser as cli_parser
from ifsq.cli.main import parser


def verbs(command):
    """The parser of every verb."""
    inner = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield command
    for action in inner:
        for below in action.choices.values():
            yield from verbs(below)


VERBS = {command.prog: command for command in verbs(parser())}


HANDED = {
    name: one
    for module in (
        analyze,
        bench,
        cli_parser,
        doctor,
        evaluate,
        features,
        generator,
        interop,
        studio,
        teacher,
        tokenizer,
    )
    for name, one in vars(module).items()
    if inspect.isfunction(one) and "options" in inspect.signature(one).parameters
}
"""Functions that are handed what a verb was given."""


def read_by(function):
    """The source of a function and of those that it hands its options on to."""
    text, names = inspect.getsource(function), {function.__name__}
    for name in inspect.unwrap(function).__code__.co_names:
        if name in HANDED and name not in names:
            names.add(name)
            text += read_by(HANDED[name])
    return text


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_takes_the_arguments_that_it_reads_and_no_others(name):
    text = read_by(VERBS[name].get_default("run"))
    taken = {action.dest for action in VERBS[name]._actions} - {"help"}
    assert {dest for dest in taken if f"options.{dest}" not in text} == set()
    assert ("options.device" in text) == ("device" in taken)


def test_one_that_it_does_not_read_is_refused(capsys):
    assert main(["doctor", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "ifsq: '--device': no such argument of ifsq doctor; see ifsq doctor --help\n"


def test_options_of_an_engine_with_an_open_quote_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "bits", "--engine-options", "--profile 'x"])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(
        'ifsq: argument --engine-options: "--profile \'x": No closing quotation; expected words as of a shell'
    )
    assert told.count("\n") == 1
