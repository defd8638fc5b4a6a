"""What to look at first when something is odd: what is installed, what the machine has, what is slow or broken here.

`examine` looks and changes nothing but a file in each folder that it tries to write, which it removes again. It takes
little longer than the import of torch, and works where torch cannot be imported.
"""

from ifsq.doctor.examine import examine as examine
from ifsq.doctor.record import Finding as Finding
