"""Write elements-train.jsonl and elements-eval.jsonl: sentences about the chemical elements, turned into records.

    python examples/data/make_elements.py

The facts (name, symbol, atomic number, period) are those of IUPAC's periodic table; the period follows from the
atomic number. Every element is told in four wordings. The held-out file holds elements that the training file never
names, so a model that answers it right has learned the task (read a sentence, write the record) and not the table.
"""

import json
from pathlib import Path

# In order of atomic number, 1 to 118.
ELEMENTS = """
Hydrogen H|Helium He|Lithium Li|Beryllium Be|Boron B|Carbon C|Nitrogen N|Oxygen O|Fluorine F|Neon Ne|Sodium Na
Magnesium Mg|Aluminium Al|Silicon Si|Phosphorus P|Sulfur S|Chlorine Cl|Argon Ar|Potassium K|Calcium Ca|Scandium Sc
Titanium Ti|Vanadium V|Chromium Cr|Manganese Mn|Iron Fe|Cobalt Co|Nickel Ni|Copper Cu|Zinc Zn|Gallium Ga|Germanium Ge
Arsenic As|Selenium Se|Bromine Br|Krypton Kr|Rubidium Rb|Strontium Sr|Yttrium Y|Zirconium Zr|Niobium Nb|Molybdenum Mo
Technetium Tc|Ruthenium Ru|Rhodium Rh|Palladium Pd|Silver Ag|Cadmium Cd|Indium In|Tin Sn|Antimony Sb|Tellurium Te
Iodine I|Xenon Xe|Caesium Cs|Barium Ba|Lanthanum La|Cerium Ce|Praseodymium Pr|Neodymium Nd|Promethium Pm|Samarium Sm
Europium Eu|Gadolinium Gd|Terbium Tb|Dysprosium Dy|Holmium Ho|Erbium Er|Thulium Tm|Ytterbium Yb|Lutetium Lu|Hafnium Hf
Tantalum Ta|Tungsten W|Rhenium Re|Osmium Os|Iridium Ir|Platinum Pt|Gold Au|Mercury Hg|Thallium Tl|Lead Pb|Bismuth Bi
Polonium Po|Astatine At|Radon Rn|Francium Fr|Radium Ra|Actinium Ac|Thorium Th|Protactinium Pa|Uranium U|Neptunium Np
Plutonium Pu|Americium Am|Curium Cm|Berkelium Bk|Californium Cf|Einsteinium Es|Fermium Fm|Mendelevium Md|Nobelium No
Lawrencium Lr|Rutherfordium Rf|Dubnium Db|Seaborgium Sg|Bohrium Bh|Hassium Hs|Meitnerium Mt|Darmstadtium Ds
Roentgenium Rg|Copernicium Cn|Nihonium Nh|Flerovium Fl|Moscovium Mc|Livermorium Lv|Tennessine Ts|Oganesson Og
"""
LAST_OF_PERIOD = (2, 10, 18, 36, 54, 86, 118)  # the noble gases
WORDINGS = (
    "{name} is written {symbol} and holds place {number} in the periodic table, in period {period}.",
    "Period {period} of the periodic table contains {name}; its symbol is {symbol}, its atomic number {number}.",
    "An atom of {name} ({symbol}) has {number} protons. The element belongs to period {period}.",
    "With atomic number {number}, {name} stands in period {period}. Chemists write {symbol}.",
)
INSTRUCTION = "Write this as a record: "
HELD_OUT = tuple(range(5, 111, 5))  # atomic numbers; 22 elements, which leaves 96 to train on


def main() -> None:
    names = [pair.split() for line in ELEMENTS.split("\n") for pair in line.split("|") if pair]
    rows: dict[str, list[str]] = {"train": [], "eval": []}
    for number, (name, symbol) in enumerate(names, start=1):
        period = 1 + sum(number > last for last in LAST_OF_PERIOD)
        facts = {"name": name, "symbol": symbol, "number": number, "period": period}
        split = "eval" if number in HELD_OUT else "train"
        # Two of the four wordings are enough to examine an element.
        wordings = WORDINGS if split == "train" else (WORDINGS[number % 4], WORDINGS[(number + 1) % 4])
        for wording in wordings:
            row = [
                {"role": "user", "content": INSTRUCTION + wording.format(**facts)},
                {"role": "assistant", "content": json.dumps(facts)},
            ]
            rows[split].append(json.dumps({"messages": row}))
    for split, lines in rows.items():
        path = Path(__file__).with_name(f"elements-{split}.jsonl")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
