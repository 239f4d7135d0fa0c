BprobabilitiesJ¥	:J{9
Î?