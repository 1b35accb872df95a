import socket, time, pytest
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor

def rows(port):
    out=[]
    for l in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        f=l.split()
        lp=int(f[1].split(":")[1],16); rp=int(f[2].split(":")[1],16)
        if port in (lp,rp) and f[3]!="0A":
            tx,rx=f[4].split(":")
            out.append(("S" if lp==port else "C", f[3], int(tx,16), int(rx,16)))
    return out
def slow(port, rcv, close, chunk, pause, n=9):
    req=b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"
    s=socket.socket()
    if rcv: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcv)
    s.connect(("127.0.0.1",port)); s.settimeout(20)
    s.sendall(req*(n-1)+(req[:-2]+b"Connection: close\r\n\r\n" if close else req))
    got=0; b=time.monotonic(); err=""
    while close or got < 101097:
        try: d=s.recv(chunk)
        except OSError as e: err=repr(e); break
        if not d: err="EOF"; break
        got+=len(d)
        time.sleep(pause)
    s.close()
    return f"rcv {rcv} close {close} chunk {chunk} pause {pause} n {n}: got {got} in {time.monotonic()-b:.1f} {err}"

def test_deaf(server, report):
    req=b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"
    cl=[]
    for _ in range(3):
            s=socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1",server.port)); cl.append(s)
            s.sendall(req*9)
    b=time.monotonic()
    while any(r[0]=="S" for r in rows(server.port)): time.sleep(0.1)
    report(f"deaf cut after {time.monotonic()-b} {rows(server.port)}")
    report(f"log {server.lines()[-3:]}")

def test_z(start_server, report):
    server = start_server()
    cases=[(rcv,close,chunk,pause) for rcv in (2048,8192,32768,65536) for close in (0,1) for chunk,pause in ((1024,0.3),(4096,1),(16384,5))]
    with ThreadPoolExecutor(64) as pool:
        for j in [pool.submit(slow,server.port,*c) for c in cases]:
            report(j.result())
